"""What in a data set's labels, masks and images makes it hard to learn or to score: warnings, not errors."""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import command_here
from .items import list_images, name_in
from .labels import Label, label_text

FEW_PATCHES = 10
SHOWN = 3


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def label_findings(labels: Sequence[Label], class_names: Sequence[str]) -> list[str]:
    """What the labels of the training patches leave unclear to a classifier."""
    if len(labels) > 1 and len(set(map(str, labels))) == 1:
        return [
            f"all {len(labels)} training patches have the same label, [{label_text(labels[0])}], so nothing can "
            "be learned from them; add patches with other labels."
        ]
    found = []
    for index, name in enumerate(class_names):
        shown = [label for label in labels if label[index] == 1]
        if 0 < len(shown) < FEW_PATCHES:
            found.append(f"only {len(shown)} training patches show {name!r}; {FEW_PATCHES} or more teach it better.")
        if shown and not any(label[index] == 0 for label in labels):
            found.append(
                f"no training patch lacks {name!r}, so a classifier cannot learn what it looks like; add patches "
                "without it."
            )
        partners = [
            other for at, other in enumerate(class_names) if at != index and all(label[at] == 1 for label in shown)
        ]
        if shown and partners:
            found.append(
                f"{name!r} never occurs without {listed(map(repr, partners))} ({len(shown)} patches), so they cannot "
                "be told apart; add patches with one of them alone."
            )
        elif shown and all(sum(value == 1 for value in label) > 1 for label in shown) and len(class_names) > 2:
            found.append(f"{name!r} never occurs alone; a few patches that show it alone make its masks better.")
    unknown = sum(any(map(math.isnan, label)) for label in labels)
    if unknown:
        found.append(
            f"{unknown} of {len(labels)} training patches have unknown labels, which do not train their classes."
        )
    return found


def score_findings(report: Mapping[str, Mapping], classes_by_value: Mapping[int, str]) -> list[str]:
    """Which classes cannot be scored, since no pixel of a split's masks shows them.

    Args:
        report: ``shares`` of pixels by mask value of each split that has masks.
        classes_by_value: the name of each mask value that is a class.
    """
    return [
        f"{split} has no pixel of {listed(map(repr, absent))}, so it cannot be scored there; add masks that show it."
        for split, result in report.items()
        if "shares" in result
        and (absent := [name for value, name in classes_by_value.items() if not result["shares"].get(str(value))])
    ]


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes()).digest()


def duplicates(dataset_dir: Path, splits: Sequence[str]) -> list[str]:
    """Images of ``splits`` that are training images too, byte for byte; only files of equal size are read."""
    train = defaultdict(list)
    for path in _readable(dataset_dir / "train" / "img"):
        train[path.stat().st_size].append(path)
    digests: dict[int, dict[bytes, Path]] = {}
    found = []
    for split in splits:
        folder, pairs = dataset_dir / split / "img", []
        for path in _readable(folder):
            size = path.stat().st_size
            if size in train and size not in digests:
                digests[size] = {_digest(other): other for other in train[size]}
            twin = digests.get(size, {}).get(_digest(path)) if size in train else None
            if twin is not None:
                pairs.append(f"{name_in(folder, path)} is {name_in(dataset_dir / 'train' / 'img', twin)}")
        if pairs:
            found.append(
                f"{len(pairs)} images of {split} are also in train, so their scores mean little: {listed(pairs)}; "
                "remove them from one of the two."
            )
    return found


def shared_groups(dataset_dir: Path, splits: Sequence[str], group: str | None, groups: Mapping[str, str]) -> list[str]:
    """Patients or slides with images both in train and in one of ``splits``.

    Args:
        dataset_dir: the data set's folder.
        splits: ``"val"``, ``"test"`` or both.
        group: regular expression whose match in an image's name is its group; by default the subfolder is.
        groups: the groups of training images that a table gives, by name; another image belongs to such a group if its
            name has the group's.
    """
    members = {
        split: Counter(
            text
            for path in list_images(dataset_dir / split / "img")
            if (text := _group(name_in(dataset_dir / split / "img", path), group)) is not None
        )
        for split in ("train", *splits)
    }
    members["train"].update(groups.values())
    found = []
    for split in splits:
        shared = {text: count for text, count in members[split].items() if text in members["train"]}
        for text in set(groups.values()) - set(shared):
            word = re.compile(rf"(?<![0-9A-Za-z]){re.escape(text)}(?![0-9A-Za-z])")
            names = [name_in(dataset_dir / split / "img", path) for path in list_images(dataset_dir / split / "img")]
            if count := sum(bool(word.search(name)) for name in names):
                shared[text] = count
        if shared:
            shown = listed(f"{text!r} ({count} in {split})" for text, count in sorted(shared.items()))
            found.append(
                f"train and {split} share {len(shared)} patients, slides or groups, so scores on {split} are too good: "
                f"{shown}; move all images of each to one side, or let `{command_here('prepare --group')}` split."
            )
    return found


def _group(name: str, group: str | None) -> str | None:
    """The group of an image ``name``: the match of a regular expression, or its subfolder; ``None`` if neither."""
    if group is None:
        return name.rpartition("/")[0] or None
    match = re.search(group, name)
    return match and match[0]


def _readable(folder: Path) -> list[Path]:
    return [path for path in list_images(folder) if path.is_file()]
