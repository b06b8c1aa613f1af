"""Generate a data set of synthetic H&E patches, so that every stage can run, and be tested, without a download.

python -m scripts demo OUTPUT_DIR --seed 0 --stain lab_b
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import BundleError
from ...files.atomic import atomic_path
from ...files.pictures import mask_picture
from .synthetic_tissue import MIN_SHARE, MIN_SIZE_PX, PALETTE, STAINS, TISSUES, Stain, make_patch, require_whole_number

SPLITS = ("train", "val", "test")
GENERATOR = {"lab_a": 1, "lab_b": 2}  # by stain; increment when the same settings produce different pixels


def draw_example(seed: int, split: str, index: int, size_px: int, stain: Stain) -> tuple[np.ndarray, np.ndarray]:
    """Draw patch ``index`` of a split and its mask, determined by the arguments alone; see ``make_patch``."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    tissues = rng.permutation(sorted(TISSUES))[: rng.choice([1, 2, 3], p=[0.38, 0.36, 0.26])]
    glass = rng.choice([0.0, rng.uniform(0.05, 0.3)])
    return make_patch(rng, size_px, tissues.tolist(), stain, glass)


def write_example(folder: Path, split: str, index: int, image: np.ndarray, mask: np.ndarray) -> None:
    """Write a patch, with its label in the name if in train, and its mask if the split has a folder ``mask``."""
    label = " ".join(str(int((mask == value).mean() >= MIN_SHARE)) for value in sorted(TISSUES))
    name = f"demo-{split}-{index:04d}-[{label}].png" if split == "train" else f"demo-{split}-{index:04d}.png"
    Image.fromarray(image).save(folder / split / "img" / name)
    if (folder / split / "mask").is_dir():
        mask_picture(mask, PALETTE).save(folder / split / "mask" / name)


def holds_data(folder: Path, settings: dict) -> bool:
    """Whether ``folder`` already holds these demo data; raise if it holds anything else.

    Args:
        folder: may be missing or empty.
        settings: the expected content of ``demo.json``, with the number of PNG files per subfolder as ``counts``.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "choose another `output_dir` or remove this one."
    if not (folder / "demo.json").is_file():
        raise FileExistsError(f"`output_dir` must be new, empty or hold demo data, got {folder}; {remedy}")
    stored, asked = (folder / "demo.json").read_text(encoding="utf-8"), json.dumps(settings)
    if stored != asked:
        raise BundleError(f"`output_dir` must hold demo data of {asked}, got {stored} in {folder}; {remedy}")
    found = {name: len(list((folder / name).glob("*.png"))) for name in settings["counts"]}
    if found != settings["counts"]:
        raise FileExistsError(f"`output_dir` must be complete, {settings['counts']}, got {found} in {folder}; {remedy}")
    return True


def make_demo_data(
    output_dir: str | Path,
    seed: int = 0,
    size_px: int = 128,
    num_train: int = 360,
    num_val: int = 60,
    num_test: int = 60,
    stain: str = "lab_a",
    train_masks: bool = False,
) -> Path:
    """Write a data set in the published layout; patch ``i`` of a split depends only on seed, size, stain and ``i``.

    ``train/img/<name>[1 0 1].png`` has its label in the name (tumor, stroma, lymphocytes); ``val`` and ``test`` have
    ``img`` and ``mask`` (palette PNG, values 0 to 3) with the same file names; ``demo.json`` records the settings. The
    folder appears complete or not at all; an existing one with the same settings is kept.

    Args:
        output_dir: the folder to create; missing, empty, or made by this function.
        seed: a whole number, 0 or more.
        size_px: height and width of a patch.
        num_train: number of training patches.
        num_val: number of validation patches.
        num_test: number of test patches.
        stain: ``"lab_a"`` or ``"lab_b"``, the same tissue in another laboratory's colours.
        train_masks: whether to write masks of training patches too, for few-shot adaptation.

    Returns:
        ``output_dir``.

    Raises:
        FileExistsError: if ``output_dir`` holds something else or an incomplete data set.
        BundleError: for an argument out of range, or if ``output_dir`` holds demo data with other settings.
    """
    totals = {"train": num_train, "val": num_val, "test": num_test}
    for name, value in {"seed": seed, **{f"num_{split}": total for split, total in totals.items()}}.items():
        require_whole_number(name, value, 0)
    require_whole_number("size_px", size_px, MIN_SIZE_PX)
    if stain not in STAINS:
        raise BundleError(
            f"`stain` must be one of {list(STAINS)}, got {stain!r}; for another, add a `Stain` to `STAINS`."
        )
    counts = {f"{split}/img": total for split, total in totals.items()}
    counts |= {f"{split}/mask": totals[split] for split in SPLITS if split != "train" or train_masks}
    settings = {"generator": GENERATOR[stain], "seed": seed, "size_px": size_px, "stain": stain, "counts": counts}
    output_dir = Path(str(output_dir)).resolve()  # Fire reads a folder named 2024 as a number
    if holds_data(output_dir, settings):
        return output_dir
    try:
        with atomic_path(output_dir) as draft:
            for name in counts:
                (draft / name).mkdir(parents=True)
            for split, total in totals.items():
                for index in range(total):
                    write_example(draft, split, index, *draw_example(seed, split, index, size_px, STAINS[stain]))
            (draft / "demo.json").write_text(json.dumps(settings), encoding="utf-8")
    except OSError:
        if not holds_data(output_dir, settings):  # another process may have been faster
            raise
    return output_dir


def describe(folder: Path) -> str:
    """Summarise a folder of demo data in one line."""
    settings = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    patches = ", ".join(f"{settings['counts'][f'{split}/img']} {split}" for split in SPLITS)
    return f"{folder}: {patches} patches of {settings['size_px']} px, seed {settings['seed']}, {settings['stain']}"
