"""Export a self-contained bundle, for MONAI's Model Zoo or the Hugging Face Hub, from a run or a weight file.

    python -m scripts export RUN
    python -m scripts export --weights FILE --method ibdr --dataset luad
        [--preset lite] [--classifier FILE] [--name NAME] [--repo-id OWNER/NAME] [--overwrite]

``dist/NAME`` and a zip of it hold the merged configs, all scripts and overlays, weights, model card, licences and a
unit test in the Model Zoo's format. Every command runs there: it segments images and slides, adapts, trains and labels.
Stage-1 weights go to ``models/classifier``. The card reports the run's scores; a weight file has none.
"""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from monai.apps.utils import SUPPORTED_HASH_TYPES
from monai.bundle import ConfigParser

from ..data.classes import KEYS, Classes
from ..errors import BundleError
from ..files.atomic import atomic_path, remove_leftovers_of, write_json
from ..files.foreign_files import read_json
from ..files.job_lock import only_job
from ..inference.config import STRENGTHS, write_inference_config
from ..runs.config_lists import PRESETS, config_list
from ..runs.old_names import current_names, read_configs
from ..runs.run_folder import BUNDLE_ROOT, RunFolder, copy_code, portable, read_record, untrained
from ..runs.settings import at
from ..weights.state_dicts import load_weights, save_weights
from .model_card import Facts, hub_card, licences, read_cards, scores_of, text_card
from .packages import required_packages

logger = logging.getLogger(__name__)

COPIED_DOCS = ("cards.json", "zoo_unit_test.txt")  # from which an exported bundle exports what it has adapted
OWN_PINS = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
MONAI_NEEDS = ("jsonschema",)  # for verify_metadata
NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
LARGE_BYTES = 25_000_000  # the Model Zoo's limit


def default_config(method: str, preset: str, dataset: str | Path | None) -> dict[str, Any]:
    """The merged config of a method, a preset and a data set's overlay (``None`` for LUAD-HistoSeg)."""
    config = read_configs(config_list("luad" if dataset is None else dataset, method, preset)).get()
    if _is_absolute(config["dataset_dir"]):  # as in the overlay of a user's own data
        config["dataset_dir"] = default_config(method, preset, None)["dataset_dir"]
    return config


class Trained(NamedTuple):
    """What to export: the merged config, with defaults for the paths in it, weight files, and the run if any.

    Where the CAMs are the network, also the ``class_strengths`` by which the run divides them.
    """

    config: dict[str, Any]
    defaults: dict[str, Any]
    patch_size: Sequence[int]
    weights: Path
    classifier: Path | None
    run: Path | None
    class_strengths: Any = None


def trained_by_run(run: Path, method: str, preset: str) -> Trained:
    """Find what to export in the folder of a complete run with the requested method and preset."""
    if RunFolder(run).network_stage is None:
        raise BundleError(f"`weights` must be a weight file or the folder of a complete run, got {run}; finish it.")
    config = current_names(read_json(run / "configs" / "train.json"))
    config["second_stage"] = RunFolder(run).has_second_stage
    if "stages" not in config:
        raise BundleError(
            f"`weights` must be a run whose configs the current code can train with, got {run}, from an earlier "
            f"version; pass its file, {run / 'models' / 'model.pt'}, with --method, --preset and --dataset."
        )
    for key, asked in {"method_name": method, "preset": preset}.items():
        if config[key] != asked:
            name = key.removesuffix("_name")
            raise BundleError(f"`{name}` must be that of the run, {config[key]!r}, got {asked!r}; change --{name}.")
    overlay = BUNDLE_ROOT / "configs" / f"dataset_{config['dataset_name']}.json"
    defaults = default_config(method, preset if preset in PRESETS else "paper", overlay if overlay.is_file() else None)
    inference = read_json(run / "configs" / "inference.json")
    classifier = run / "models" / "classifier" / "model.pt"
    weights = run / "models" / "model.pt"
    classifier = classifier if classifier.is_file() else None
    strengths = at(inference, STRENGTHS)
    return Trained(config, defaults, inference["patch_size"], weights, classifier, run, strengths)


def shareable(config: Mapping[str, Any], defaults: Mapping[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
    """``config`` for any machine: data and results inside the bundle, which can run from any folder.

    Args:
        config: merged config, references unresolved.
        defaults: the config whose values replace paths that are specific to this machine.
        patch_size: height and width of the training patches in px.

    Raises:
        BundleError: if a path specific to this machine remains.
    """
    shared = portable(dict(defaults) | dict(config), "", None)  # an old run may lack keys that newer code needs
    shared |= {key: defaults[key] for key in ("dataset_dir", "imports", "picture_names")}
    shared |= {key: defaults[key] for key, value in shared.items() if key in defaults and _is_absolute(value)}
    shared["output_dir"] = "$@bundle_root + '/output'"
    shared["patch_size"] = {**defaults["patch_size"], "default": list(patch_size)}
    left = [key for key, value in shared.items() if _holds_absolute(value)]
    if left:
        raise BundleError(
            f"the config must have no machine-specific paths, but {left} have; pass a weight file as --weights."
        )
    return shared


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~") or value[1:3] == ":\\")


def _holds_absolute(value: Any) -> bool:
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return _is_absolute(value) or any(_holds_absolute(child) for child in children)


def write_configs(folder: Path, train: Mapping[str, Any], class_strengths: Any = None) -> None:
    """Write the configs of the trained networks into ``folder / "configs"``, and the overlays of data sets.

    An overlay with a path specific to this machine describes somebody's own data: the one of ``train`` is rewritten
    without, others are left out, as are those that cannot be read.
    """
    configs = folder / "configs"
    write_json(configs / "train.json", train)
    stage = ConfigParser(dict(train)).get_parsed_content("training_stages")[-1]
    write_inference_config(folder, Classes.of(train), train["patch_size"]["default"], stage, class_strengths)
    for path in (BUNDLE_ROOT / "configs").glob("dataset_*.json"):
        try:
            if not _holds_absolute(read_json(path)):
                shutil.copy(path, configs / path.name)
        except BundleError as error:
            logger.warning(f"{path.name} is not exported: {error}")
    own = configs / f"dataset_{train['dataset_name']}.json"
    if not own.is_file():
        write_json(
            own, {key: train[key] for key in ("dataset_name", *KEYS, "ignore_value", "model_mpp") if key in train}
        )


def write_weights(folder: Path, weights: Path, classifier: Path | None) -> None:
    """Load weights strictly into the networks of the exported configs, and save them where the configs expect them."""
    for config, name, source, target in (
        ("inference.json", "network_def", weights, "model.pt"),
        ("train.json", "classifier_def", classifier, "classifier/model.pt"),
    ):
        if source is not None:
            parser = ConfigParser()
            parser.read_config(str(folder / "configs" / config))
            parser["bundle_root"] = str(folder)
            save_weights(load_weights(parser.get_parsed_content(name), source), folder / "models" / target)


def write_metadata(folder: Path, facts: Facts) -> None:
    """Complete ``metadata.json`` with the facts of the card, the stage-1 network, and the installed versions."""
    path = folder / "configs" / "metadata.json"
    metadata = read_json(path)
    always = (*metadata["required_packages_version"], *MONAI_NEEDS)
    packages = required_packages(sorted((folder / "configs").glob("*.json")), folder, always)
    metadata |= {key: packages.pop(name) for name, key in OWN_PINS.items()}
    metadata["required_packages_version"] = packages
    metadata |= facts.metadata()
    train = read_json(folder / "configs" / "train.json")
    channels = {str(channel): name for channel, name in enumerate(train["class_names"])}
    image = metadata["network_data_format"]["inputs"]["image"]
    shared = {"num_channels": len(channels), "dtype": "float32", "is_patch_data": False, "channel_def": channels}
    cam = {"type": "image", "format": "class activation map", "spatial_shape": image["spatial_shape"]}
    prob = {"type": "probabilities", "format": "image-level", "spatial_shape": [1, 1], "value_range": [0, 1]}
    metadata["classifier_data_format"] = {
        "inputs": {"image": image},
        "outputs": {"cam": cam | {"value_range": []} | shared, "prob": prob | shared},
    }
    write_json(path, metadata)


def write_large_files(folder: Path, repo_id: str, bundle_version: str) -> None:
    """Write ``large_files.yml``, which says where to download files too large for the Model Zoo, if there are any."""
    large = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size > LARGE_BYTES:
            name = path.relative_to(folder).as_posix()
            url = f"https://huggingface.co/{repo_id}/resolve/{bundle_version}/{name}"
            digest = SUPPORTED_HASH_TYPES["md5"](path.read_bytes(), usedforsecurity=False).hexdigest()
            large.append({"path": name, "url": url, "hash_val": digest, "hash_type": "md5"})
    if large:
        ConfigParser.export_config_file({"large_files": large}, str(folder / "large_files.yml"), fmt="yaml")


def build(folder: Path, trained: Trained, facts: Facts) -> None:
    """Fill ``folder`` with an exported bundle."""
    train = facts.config
    copy_code(folder)
    write_configs(folder, train, trained.class_strengths)
    write_weights(folder, trained.weights, trained.classifier)
    write_metadata(folder, facts)
    (folder / "docs").mkdir()
    for name in COPIED_DOCS:
        shutil.copy(BUNDLE_ROOT / "docs" / name, folder / "docs" / name)
    in_export = (BUNDLE_ROOT / "LICENSE").is_file()  # in a checkout it is beside the bundle
    for name in ("LICENSE", "CITATION.cff"):
        shutil.copy((BUNDLE_ROOT if in_export else BUNDLE_ROOT.parent) / name, folder / name)
    test = Template((BUNDLE_ROOT / "docs" / "zoo_unit_test.txt").read_text(encoding="utf-8"))
    documents = {
        "docs/README.md": text_card(facts),
        "README.md": hub_card(facts),
        "docs/data_license.txt": licences(facts),
        f"unit_tests/test_{facts.name}.py": test.substitute(
            name=facts.name, num_classes=len(train["class_names"]), largest_value=len(train["palette"]) - 1
        ),
    }
    for name, text in documents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    write_large_files(folder, facts.repo_id, facts.version)


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise an error unless ``folder`` is new, or an exported bundle to be overwritten."""
    if not folder.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{folder} must not exist yet; pass --overwrite to replace it, or another --name.")
    if not (folder / "unit_tests" / f"test_{folder.name}.py").is_file():
        raise FileExistsError(f"--overwrite replaces exported bundles only, and {folder} is none; pass another --name.")


def export(
    method: str,
    weights: str,
    output: str,
    preset: str = "paper",
    dataset: str | None = None,
    classifier: str | None = None,
    repo_id: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Export a bundle; see the module's docstring.

    Args:
        method: ``esfan``, ``ibdr``, ``sshr`` or any other method with an overlay ``configs/method_*.json``.
        weights: a run's folder, or the segmentation network's weight file.
        output: where to write the bundle's folder and zip.
        preset: ``paper`` or ``lite``: the networks.
        dataset: with a weight file, the overlay of the data set it was trained on; default: LUAD-HistoSeg's.
        classifier: with a weight file, the stage-1 weight file to include, if any.
        repo_id: the Hub repository, ``OWNER/NAME``, that hosts large files; default: the Model Zoo's.
        name: the bundle's name; default: ``METHOD_histopathology_segmentation``.
        overwrite: replace an exported bundle of the same name.

    Returns:
        The bundle's folder.

    Raises:
        FileExistsError: if ``output`` already has a folder of that name; a zip alone is overwritten.
        BundleError: for an unknown method or preset, one that is not the run's, or weights that do not match.
    """
    source, output = Path(str(weights)).resolve(), Path(str(output)).resolve()
    name = f"{method}_histopathology_segmentation" if name is None else name
    if NAME.fullmatch(name) is None:
        raise BundleError(
            f"`name` must be letters, digits and underscores, starting with a letter, got {name!r}; rename the bundle."
        )
    folder, archive = output / name, output / f"{name}.zip"
    require_free(folder, overwrite)
    if source.is_dir():
        if dataset is not None or classifier is not None:
            raise BundleError("`dataset` and `classifier` must be left out with a run's folder, which has its own.")
        trained = trained_by_run(source, method, preset)
    else:
        config = default_config(method, preset, dataset)
        stage_1 = None if classifier is None else Path(str(classifier))
        trained = Trained(config, config, config["patch_size"]["default"], source, stage_1, None)
    facts = Facts(
        name=name,
        version=read_json(untrained("metadata.json"))["version"],
        repo_id=repo_id or f"MONAI/{name}",
        config=shareable(trained.config, trained.defaults, trained.patch_size),
        cards=read_cards(BUNDLE_ROOT / "docs" / "cards.json"),
        record={} if trained.run is None else read_record(trained.run),
        scores=scores_of(trained.run),
        has_classifier=trained.classifier is not None,
    )
    with only_job(folder, beside=True, option="output"):
        for path in (folder, archive):
            remove_leftovers_of(path)
        with atomic_path(folder) as draft:  # the folder appears last: a zip alone is left over from a killed export
            draft.mkdir()
            build(draft, trained, facts)
            with atomic_path(archive) as temporary:
                shutil.make_archive(str(temporary.with_suffix("")), "zip", draft.parent, name)
            if folder.exists():
                folder.rename(draft.with_name("replaced"))  # and deleted with the temporary folder
    return folder
