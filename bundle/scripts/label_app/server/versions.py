"""The networks trained on annotations: run folders ``0001``, ``0002``, ... beside the bundle's own network."""

from pathlib import Path

from ...errors import BundleError
from ...runs.run_folder import RunFolder

BASE = "base"  # the bundle's own network
NEWEST = "newest"


class Versions:
    """The versions of a bundle's segmentation network.

    Args:
        bundle: folder of the bundle, with ``models/model.pt``.
        folder: folder of the versions; each is a run folder, and a bundle in itself.
    """

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.bundle = bundle
        self.folder = folder

    def names(self) -> list[str]:
        """``"base"`` if the bundle has a network, and the numbers of finished versions, oldest first."""
        base = [BASE] if (self.bundle / "models" / "model.pt").is_file() else []
        return base + [path.name for path in self._numbered() if RunFolder(path).network_stage]

    def run_folder(self, name: str = NEWEST) -> Path:
        """The folder of a version, whose network is in ``models/model.pt``.

        Raises:
            BundleError: if no version has that name.
        """
        names = self.names()
        if not names:
            raise BundleError(
                f"the bundle {self.bundle} has no network yet: train one (its README says how), start the server with "
                "`--conf bundle RUN_FOLDER`, or train it with your annotations."
            )
        name = names[-1] if name == NEWEST else name
        if name not in names:
            raise BundleError(f"`version` must be one of {[NEWEST, *names]}, got {name!r}.")
        return self.bundle if name == BASE else self.folder / name

    def weights(self, name: str = NEWEST) -> Path:
        """The weights file of a version; raises as ``run_folder`` does."""
        return self.run_folder(name) / "models" / "model.pt"

    def name_of(self, run_folder: Path) -> str:
        """The name of the version in a folder."""
        return BASE if run_folder == self.bundle else run_folder.name

    def new_folder(self) -> Path:
        """The folder for the next version, not created yet; folders left by failed trainings are skipped."""
        number = 1 + max((int(path.name) for path in self._numbered()), default=0)
        return self.folder / f"{number:04d}"

    def _numbered(self) -> list[Path]:
        """The numbered folders, in order."""
        return sorted(path for path in self.folder.glob("[0-9]" * 4) if path.is_dir())
