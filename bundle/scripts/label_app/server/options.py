"""What ``--conf NAME VALUE`` may say when the server is started."""

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
        versions: folder of the networks that annotations trained; ``""`` for ``versions`` in the bundle.
        device: where networks work, such as ``"cpu"`` or ``"cuda"``; ``""`` for a GPU if there is one.
        mpp: micrometres per pixel of slides whose files do not say them, and of pictures that a client sends; 0 if
            unknown.
        largest_mpx: 10^6 pixels at the network's resolution that one request may ask for.
        slide_samples: places of a slide whose uncertainty is looked at.
        scoring_seconds: time after which a search for the most uncertain image makes do with what it has seen.

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
                raise BundleError(f"`{name}` must be at least {lowest}, got {value}; correct `--conf {name}`.")
        if not (self.bundle / "configs" / "inference.json").is_file():
            raise BundleError(
                f"`bundle` must be the folder of a bundle or of a finished run, got {self.bundle}; it has no "
                "configs/inference.json. Give another one by `--conf bundle FOLDER`."
            )

    @property
    def versions_dir(self) -> Path:
        """Where versions go."""
        return Path(self.versions).resolve() if self.versions else self.bundle / "versions"

    @property
    def stated_mpp(self) -> float | None:
        """``mpp``, or ``None`` if it is unknown."""
        return self.mpp or None


def read_options(conf: Mapping[str, Any]) -> Options:
    """The settings among those of the command line, which come as text; others are the server's own.

    Raises:
        BundleError: if one is no number where it must be, or out of range.
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
                f"`{field.name}` must be a number, got {conf[field.name]!r}; correct `--conf {field.name}`."
            ) from error
    return Options(**given)
