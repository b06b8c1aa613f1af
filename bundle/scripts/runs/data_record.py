"""Compare the data of a run with what its record says of them: names, sizes and labels (see ``data.fingerprint``)."""

from collections.abc import Mapping

SHOWN = 3
Fingerprint = Mapping[str, Mapping[str, str]]  # by folder, then by file: its size in bytes and, in train/img, its label


def data_differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """What differs between two fingerprints, in words; empty if nothing does.

    A test set that came later is no difference: nothing was trained or scored on it.
    """
    found = []
    for folder in sorted({*old, *new}):
        before, now = old.get(folder, {}), new.get(folder, {})
        if folder.startswith("test/") and not before:
            continue
        both = sorted(before.keys() & now.keys())
        sizes, labels = [], []
        for name in both:
            (size, _, label), (new_size, _, new_label) = before[name].partition(" "), now[name].partition(" ")
            sizes += [name] if size != new_size else []
            labels += [f"{name} was [{label}], now [{new_label}]"] if label != new_label else []
        for names, what in (
            (labels, "labels differ"),
            (sizes, "sizes differ"),
            (sorted(now.keys() - before.keys()), "images are new"),
            (sorted(before.keys() - now.keys()), "images are missing"),
        ):
            if names:
                more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                found.append(f"{what} in {folder} ({len(names)}): {', '.join(names[:SHOWN])}{more}")
    return found
