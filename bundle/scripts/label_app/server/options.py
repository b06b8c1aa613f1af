"""Settings given as ``--conf NAME VALUE`` when the server is started."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import BundleError
from ...runs.run_folder import BUNDLE_ROOT


@dataclass(frozen=True)
class Options:
    """Settings of the app.

    Args:
        bundle: folder of the bundle or of a finished run.
        versions: folder of the networks trained on annotations; ``""`` for ``versions`` in the bundle.
        device: device of the networks, such as ``"cpu"`` or ``"cuda"``; ``""`` for a GPU if available.
        mpp: micrometres per pixel of slides whose files do not state it, and of images sent by a client; 0 if unknown.
        largest_mpx: maximum size of a requested region, in megapixels at the network's resolution.
        slide_samples: number of places sampled to estimate a slide's uncertainty.
        scoring_seconds: time limit for scoring images when looking for the most uncertain one.

    Raises:
        BundleError: if a setting is out of range.
    """

    bundle: Path = BUNDLE_ROOT
    versions: str = ""
    device: str = ""
    mpp: float = 0.0
    largest_mpx: float = 400.0
    slide_samples: int = 16
    scoring_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, lowest in (("mpp", 0), ("largest_mpx", 0), ("slide_samples", 1), ("scoring_seconds", 0)):
            value = getattr(self, name)
            if not value >= lowest:
                raise BundleError(f"`{name}` must be at least {lowest}, got {value}; change `--conf {name}`.")
        if not (self.bundle / "configs" / "inference.json").is_file():
            raise BundleError(
                f"`bundle` must be the folder of a bundle or of a finished run, got {self.bundle}; it has no "
                "configs/inference.json. Choose another folder with `--conf bundle FOLDER`."
            )

    @property
    def versions_dir(self) -> Path:
        """The folder for versions."""
        return Path(self.versions).resolve() if self.versions else self.bundle / "versions"

    @property
    def stated_mpp(self) -> float | None:
        """``mpp``, or ``None`` if it is unknown."""
        return self.mpp or None


def read_options(conf: Mapping[str, Any]) -> Options:
    """Parse the app's settings from the command line's strings; other settings are the server's own.

    Raises:
        BundleError: if one is not a number where required, or is out of range.
    """
    given: dict[str, Any] = {}
    for field in fields(Options):
        if field.name not in conf:
            continue
        kind = {"bundle": lambda text: Path(text).resolve()}.get(field.name, type(field.default))
        try:
            given[field.name] = kind(conf[field.name])
        except ValueError as error:
            raise BundleError(
                f"`{field.name}` must be a number, got {conf[field.name]!r}; change `--conf {field.name}`."
            ) from error
    return Options(**given)
