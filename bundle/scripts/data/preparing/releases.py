"""Split a data set's release, with images and masks together in one flat folder.

The overlay's section ``"source"`` states how releases differ. GlaS has ``train_1.bmp`` with ``train_1_anno.bmp`` and
``testA_1.bmp`` with ``testA_1_anno.bmp``; DigestPath has ``NAME.jpg`` with ``NAME_mask.jpg``, several per slide.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path

from ...errors import BundleError
from ...files.pictures import IGNORED
from ..items import find_images

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Release:
    """How to read the files of a data set's release; image names are given without suffix.

    Args:
        mask_values: our value for each value in the masks (see ``lookup_table``).
        patch_size: side of a training patch in px that suits the images.
        stride: distance between neighbouring patches in px; ``None`` for half of ``patch_size``.
        min_share: smallest share of a patch at which a class counts as present.
        mask_suffix: in a flat folder, the mask of ``NAME.ext`` is ``NAME`` + this + the suffix of any image format.
        splits: for each split, a shell pattern for its image names; images that match none are skipped.
        val_share: share of the images matching train's pattern that become val, if val has no pattern.
        test_share: the same for test.
        group: regular expression; images whose names contain the same match, e.g. the slide's name, stay in one split;
            default: each image is its own group.
        ignore_value: the value of pixels that take no part (see ``lookup_table``).

    Raises:
        BundleError: for an invalid value.
    """

    mask_values: Mapping[str, int]
    patch_size: int = 128
    stride: int | None = None
    min_share: float = 0.05
    mask_suffix: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "*"})
    val_share: float = 0.0
    test_share: float = 0.0
    group: str | None = None
    ignore_value: int | None = IGNORED

    def __post_init__(self) -> None:
        if self.mask_suffix is not None and not (isinstance(self.mask_suffix, str) and self.mask_suffix):
            raise BundleError(
                f'`mask_suffix` must be a string such as "_mask", got {self.mask_suffix!r}; use the end of the masks\' '
                "names."
            )
        if (
            not isinstance(self.splits, Mapping)
            or not {"train"} <= set(self.splits) <= set(SPLITS)
            or not all(isinstance(pattern, str) for pattern in self.splits.values())
        ):
            raise BundleError(
                f"`splits` must have a pattern for train, and may have one for val and test, got {self.splits}; write "
                'it as {"train": "train_*"}.'
            )
        for name, share in (("val_share", self.val_share), ("test_share", self.test_share)):
            if type(share) not in (int, float) or not 0 <= share < 1:
                raise BundleError(f"`{name}` must be in [0, 1), got {share!r}; use a fraction, not a percentage.")
        if self.val_share + self.test_share >= 1:
            raise BundleError(
                "`val_share` and `test_share` must leave images for train, so their sum must be below 1, got "
                f"{self.val_share} + {self.test_share}; lower one of them."
            )
        try:
            re.compile(self.group or "")
        except (re.error, TypeError) as error:
            raise BundleError(
                f"`group` must be a regular expression, got {self.group!r}: {error}; fix the pattern."
            ) from error


def read_release(overlay: Mapping) -> Release:
    """The section ``"source"`` of a data set's overlay; ``mask_values`` and ``ignore_value`` default to the overlay's.

    Raises:
        BundleError: for an unknown key or an invalid value.
    """
    section = overlay.get("source", {})
    allowed = [item.name for item in fields(Release)]
    if not isinstance(section, Mapping) or not set(section) <= set(allowed):
        got = sorted(set(section) - set(allowed)) if isinstance(section, Mapping) else section
        raise BundleError(
            f"`source` must be a section with keys among {', '.join(allowed)}, got {got!r}; rename or remove it."
        )
    return Release(**{key: overlay[key] for key in ("mask_values", "ignore_value") if key in overlay} | dict(section))


def natural_key(name: str) -> list:
    """Sort key that puts ``"train_2"`` before ``"train_10"``."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]


def group_of(name: str, group: str | None) -> str:
    """The match of the regular expression ``group`` in an image's name; without a ``group``, the name itself."""
    match = re.search(group or ".*", name)
    if match is None:
        raise BundleError(
            f"`group` must match in the name of every image, but {group!r} does not match {name!r}; fix the pattern."
        )
    return match[0]


def require_separate_groups(pairs: Mapping[str, Sequence[Mapping[str, str]]], group: str) -> None:
    """Raise a ``BundleError`` if images of one ``group`` are in two splits; see ``group_of``."""
    splits: dict[str, set[str]] = {}
    for split, items in pairs.items():
        for item in items:
            splits.setdefault(group_of(item["name"], group), set()).add(split)
    shared = sorted(text for text, found in splits.items() if len(found) > 1)
    if shared:
        raise BundleError(
            f"all images of a `group` must be in one split, but those of {len(shared)} groups are in several, such as "
            f"{shared[:5]}; move them, or put all images into one folder and set `val_share` in the overlay's `source`."
        )


def take_last(groups: list[list[str]], images: float, keep: int) -> list[str]:
    """Remove the last groups, at least one and as many as get closest to ``images`` names; leave ``keep`` groups."""
    taken = list(accumulate(map(len, reversed(groups))))[: len(groups) - keep]
    count = 1 + min(range(len(taken)), key=lambda index: round(abs(taken[index] - images), 6))
    last = [name for members in groups[-count:] for name in members]
    del groups[-count:]
    return last


def split_names(names: Sequence[str], release: Release) -> dict[str, list[str]]:
    """The image names of each split, in natural order; groups are ordered by their first image.

    Of the images that match train's pattern, the last groups become test and those before them val, according to
    ``test_share`` and ``val_share``.

    Raises:
        BundleError: if train's pattern matches no image or too few groups, or if an image, or images of the same group,
            match the patterns of two splits.
    """
    names = sorted(names, key=natural_key)
    split_of: dict[str, str] = {}
    matched: dict[str, list[str]] = {split: [] for split in SPLITS}
    groups: dict[str, list[str]] = {}
    for split, pattern in release.splits.items():
        for name in (name for name in names if fnmatchcase(name, pattern)):
            text = group_of(name, release.group)
            if split_of.setdefault(text, split) != split:
                raise BundleError(
                    f"`splits` must put each image, and all images of a `group`, in one split, but {name!r} of group "
                    f"{text!r} is in {split_of[text]} and {split}; fix the patterns."
                )
            matched[split].append(name)
            if split == "train":
                groups.setdefault(text, []).append(name)
    if not groups:
        raise BundleError(
            f"`splits` must match images to train on, got {release.splits['train']!r}, which matches none of "
            f"{names[:3]} …; fix the pattern."
        )
    shares = {"test": release.test_share, "val": release.val_share}
    shares = {split: share for split, share in shares.items() if share and split not in release.splits}
    if len(groups) <= len(shares):
        raise BundleError(
            f"the images matching train's pattern must form at least {len(shares) + 1} groups, got {len(groups)}, "
            f"{list(groups)}; set `{'` and `'.join(f'{split}_share' for split in shares)}` to 0, or add images."
        )
    total, members = len(matched["train"]), list(groups.values())
    for later, (split, share) in enumerate(shares.items(), start=1):
        matched[split] = take_last(members, share * total, keep=1 + len(shares) - later)
    return matched | {"train": [name for group in members for name in group]}


def read_flat_folder(folder: Path, release: Release) -> dict[str, list[dict[str, str]]]:
    """Images and masks of each split from a folder with the masks beside the images.

    Returns:
        Items ``{"image": path, "label": mask path, "name": file name}`` by split (see ``split_names``).

    Raises:
        FileNotFoundError: if an image has no mask, or a mask no image.
    """
    images, masks = {}, {}
    for path in find_images(folder):
        is_mask = path.stem.endswith(release.mask_suffix)
        (masks if is_mask else images)[path.stem.removesuffix(release.mask_suffix)] = path
    for files, partners, kind in ((images, masks, "a mask"), (masks, images, "an image")):
        alone = [path.name for name, path in files.items() if name not in partners]
        if alone:
            raise FileNotFoundError(
                f"each file in {folder} must have {kind} beside it (`mask_suffix` is {release.mask_suffix!r}), but "
                f"{alone[:5]} have none; add it, or move the file elsewhere."
            )
    return {
        split: [{"image": str(images[name]), "label": str(masks[name]), "name": images[name].name} for name in names]
        for split, names in split_names(list(images), release).items()
    }
