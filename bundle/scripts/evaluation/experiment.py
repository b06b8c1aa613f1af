"""Train and score variants of the configs with several seeds, and compare them in one table.

    python -m scripts experiment PLAN.json --dataset NAME --output-dir DIR [--seeds 0,1,2] [--only NAME,NAME] ...

A plan is JSON: ``configs``, the config files shared by all variants; ``settings``, their shared overrides; ``split``,
the split to score; ``classes``, by data set, the classes whose mean IoU is compared (default: all); and ``variants``,
by name, each with

* ``like``: another variant, whose configs and settings come before its own;
* ``configs`` and ``settings`` of its own, which come after the shared ones;
* ``classifier_of``: another variant whose trained classifier it uses instead of training one;
* ``second_round_of``: another variant whose run it starts from (see ``configs/second_round.json``).

``charts``, by the name of their file, draw mean IoU against what the variants differ in: ``x_name``; ``points``, a
variant for each category; and ``level``, a variant to compare all others with.

``{dataset}`` in a plan's strings is replaced by ``--dataset``. Each variant and seed has its own run folder,
``DIR/NAME/SEED``. Complete runs are skipped and interrupted ones resumed, so the command can be repeated at any time.
The table, in Markdown, is written to ``DIR/table.md``, and the charts to ``DIR/NAME.svg``.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files.atomic import write_text
from ..files.foreign_files import read_json, read_tensors
from ..runs.config_lists import in_working_directory
from ..runs.devices import cpu_cores
from ..runs.old_names import read_configs
from ..runs.progress import Progress
from ..runs.run_folder import BUNDLE_ROOT, RunFolder, read_record
from .borders import NEAR_PX, SMALL_PX, digest
from .report.curves import share_chart

PLAN_KEYS = {"_desc_", "configs", "settings", "split", "classes", "variants", "charts"}
CHART_KEYS = {"x_name", "points", "level"}
LINES = {"line": ("segmenter", "segmentation"), "second": ("classifier", "CAMs")}  # stage and name, by kind of line
SHOWN_BORDERS = ("boundary_iou", "near_border", "inside", "small_found", "large_found")
VARIANT_KEYS = {"_desc_", "like", "configs", "settings", "classifier_of", "second_round_of"}


def read_plan(path: str | Path, dataset: str | None = None) -> dict[str, Any]:
    """Read a plan (see the module's docstring) for a data set, resolving what variants inherit from others.

    Raises:
        BundleError: if it has no variants or an unknown key, a variant refers to an unknown one or, by ``like``, to
            itself, or a ``dataset`` is needed but not given.
    """
    text = json.dumps(read_json(path))
    if dataset is None and "{dataset}" in text:
        raise BundleError(f"`dataset` must name the data set for {path}, got null; pass --dataset, for instance glas.")
    plan = json.loads(text.replace("{dataset}", str(dataset)))
    if not isinstance(plan, dict) or not plan.get("variants") or set(plan) - PLAN_KEYS:
        raise BundleError(f"{path} must have `variants`, and only keys from {sorted(PLAN_KEYS)}, got {list(plan)}.")
    for name, variant in plan["variants"].items():
        if set(variant) - VARIANT_KEYS:
            raise BundleError(
                f"{path}: {name!r} must have only keys from {sorted(VARIANT_KEYS)}, got {sorted(variant)}."
            )
        for key in ("like", "classifier_of", "second_round_of"):
            if variant.get(key) is not None and variant[key] not in plan["variants"]:
                raise BundleError(f"{path}: `{key}` of {name!r} must name a variant, got {variant[key]!r}.")
    for name, one in plan.get("charts", {}).items():
        if set(one) - CHART_KEYS or not {"x_name", "points"} <= set(one):
            raise BundleError(
                f"{path}: chart {name!r} must have x_name and points, and may have level, got {sorted(one)}."
            )
        unknown = {*one["points"].values(), one.get("level", next(iter(plan["variants"])))} - set(plan["variants"])
        if unknown:
            raise BundleError(f"{path}: chart {name!r} must name variants, got {sorted(unknown)}.")
    plan["variants"] = {name: _whole_variant(plan["variants"], name, path) for name in plan["variants"]}
    plan["classes"] = plan.get("classes", {}).get(dataset)
    return plan


def _whole_variant(variants: Mapping[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    """A variant, including what it inherits from the one it is like."""
    whole, seen, current = {}, [], name
    while current is not None:
        if current in seen:
            raise BundleError(f"{path}: `like` of {name!r} must not lead back to itself, got {seen + [current]}.")
        seen.append(current)
        own = variants[current]
        configs, settings = own.get("configs", []), own.get("settings", {})
        whole = (
            own
            | whole
            | {"configs": [*configs, *whole.get("configs", [])], "settings": settings | whole.get("settings", {})}
        )
        current = own.get("like")
    return whole


def commands(plan: Mapping[str, Any], name: str, seed: int, output_dir: Path) -> list[list[str]]:
    """The command lines for a variant's run."""
    variant = plan["variants"][name]
    configs = [*plan.get("configs", ["configs/train.json"]), *variant.get("configs", [])]
    own = [config for config in configs if Path(config).name != "train.json" and Path(config).is_file()]
    configs = [str(Path(config).resolve()) if config in own else config for config in configs]
    settings = plan.get("settings", {}) | variant.get("settings", {}) | {"seed": seed}
    settings["output_dir"] = str(run_folder(output_dir, name, seed))
    if "dataset_dir" not in settings and Path.cwd() != BUNDLE_ROOT:
        paths = [BUNDLE_ROOT / path for path in configs]
        if all(path.is_file() for path in paths):
            settings |= in_working_directory("dataset_dir", read_configs(paths)["dataset_dir"])
    runs = [("training", configs)]
    if variant.get("second_round_of") is not None:
        settings["source_dir"] = str(run_folder(output_dir, variant["second_round_of"], seed))
        runs = [("segmentation", configs)]
    elif variant.get("classifier_of") is not None:
        classifier = run_folder(output_dir, variant["classifier_of"], seed) / "models" / "classifier" / "model.pt"
        settings["classifier_path"] = str(classifier)
        runs = [("score_classifier", [*configs, "configs/evaluate.json"]), ("segmentation", configs)]
    arguments = [part for key, value in settings.items() for part in (f"--{key}", _argument(value))]
    start = [sys.executable, "-m", "monai.bundle", "run"]
    return [[*start, run_id, "--config_file", str(files), *arguments] for run_id, files in runs]


def _argument(value: Any) -> str:
    return "$None" if value is None else str(value)


def run_folder(output_dir: Path, name: str, seed: int) -> Path:
    """The run folder of a variant and a seed."""
    return output_dir / name.replace(" ", "_").replace("/", "_") / str(seed)


def run_variant(plan: Mapping[str, Any], name: str, seed: int, output_dir: Path, threads: int | None) -> str | None:
    """Run a variant unless its run is complete; its output goes to ``log.txt`` in the run folder.

    Returns:
        A message about what went wrong; ``None`` on success.
    """
    folder = run_folder(output_dir, name, seed)
    if RunFolder(folder).network_stage:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    # idle threads leave the cores to the other runs
    shared = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    environment = os.environ | shared
    for command in commands(plan, name, seed, output_dir):
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            code = subprocess.run(command, cwd=BUNDLE_ROOT, env=environment, stdout=log, stderr=log).returncode
        if code != 0:
            return f"{name}, seed {seed}: exit status {code}, see {folder / 'log.txt'}"
    return None


def border_scores(folder: Path, split: str, classes: Sequence[str] | None) -> dict[str, float | None]:
    """The ``digest`` of the segmentation network's border scores; empty if it was not scored."""
    path = folder / "scores" / f"segmenter_{split}.json"
    result = read_json(path)["protocols"]["published"] if path.exists() else {}
    return digest(result["borders"], classes) if "borders" in result else {}


def mean_iou(folder: Path, stage: str, split: str, classes: Sequence[str] | None) -> float | None:
    """Mean IoU of ``classes`` (all if ``None``) under the protocol ``published``; ``None`` if it was not scored."""
    path = folder / "scores" / f"{stage}_{split}.json"
    if not path.exists():
        return None
    scores = read_json(path)["protocols"]["published"]["classes"]
    values = [scores[name]["iou"] for name in classes or scores if scores[name]["iou"] is not None]
    return statistics.mean(values) if values else None


def million_parameters(path: Path) -> float | None:
    """Number of values in a weight file, parameters and buffers, in millions."""
    if not path.exists():
        return None
    return sum(tensor.numel() for tensor in read_tensors(path).values()) / 1e6


def _cell(values: Sequence[float | None], digits: int) -> str:
    """Mean and range of the values that are not ``None``."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def complete_runs(output_dir: Path, name: str, seeds: Sequence[int]) -> list[Path]:
    """The folders of a variant's complete runs."""
    folders = [run_folder(output_dir, name, seed) for seed in seeds]
    return [folder for folder in folders if RunFolder(folder).network_stage]


def table(plan: Mapping[str, Any], seeds: Sequence[int], output_dir: Path) -> str:
    """The Markdown table of all variants that have a complete run."""
    split, classes = plan.get("split", "val"), plan.get("classes")
    lines = [
        f"Mean IoU of {', '.join(classes) if classes else 'all classes'} on {split}, protocol `published`: the mean "
        "over seeds, with the lowest and highest in brackets. Of the segmentation also: boundary IoU; the pixels that "
        f"are right within {NEAR_PX} px of a true border, and inside; the regions under {SMALL_PX} px, and the larger "
        "ones, that are found.",
        "",
        "| variant | CAMs | segmentation | boundary IoU | near borders | inside | small regions | large regions "
        "| minutes | million parameters | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in plan["variants"]:
        folders = complete_runs(output_dir, name, seeds)
        if not folders:
            continue
        scores = [
            [mean_iou(folder, stage, split, classes) for folder in folders] for stage in ("classifier", "segmenter")
        ]
        minutes = [sum(s["minutes"] for s in read_record(folder)["stages"].values()) for folder in folders]
        size = million_parameters(folders[0] / "models" / "model.pt")
        borders = [border_scores(folder, split, classes) for folder in folders]
        cells = [name, *(_cell(values, 3) for values in scores)]
        cells += [_cell([one.get(key) for one in borders], 3) for key in SHOWN_BORDERS]
        cells += [_cell(minutes, 0), _cell([size], 1), str(len(folders))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def charts(plan: Mapping[str, Any], seeds: Sequence[int], output_dir: Path) -> dict[str, str]:
    """The plan's charts as SVG, by name, without those of which no variant has a complete run."""
    split, classes, drawings = plan.get("split", "val"), plan.get("classes"), {}

    def mean(variant: str, stage: str) -> float | None:
        folders = complete_runs(output_dir, variant, seeds)
        scores = [mean_iou(folder, stage, split, classes) for folder in folders]
        scores = [score for score in scores if score is not None]
        return statistics.mean(scores) if scores else None

    for name, one in plan.get("charts", {}).items():
        curves = {kind: [mean(v, stage) for v in one["points"].values()] for kind, (stage, _) in LINES.items()}
        legend = {kind: text for kind, (_, text) in LINES.items()}
        if "level" in one:
            curves["third"] = [mean(one["level"], "segmenter")] * len(one["points"])
            legend["third"] = one["level"]
        legend = {kind: text for kind, text in legend.items() if any(value is not None for value in curves[kind])}
        if "line" in legend:
            pairs = zip(one["points"], curves["line"], strict=True)
            said = ", ".join(f"{value:.3f} at {x}" for x, value in pairs if value is not None)
            title = f"mean IoU by {one['x_name']}"
            drawings[name] = share_chart(f"{title}: {said}", curves, list(one["points"]), title, legend)
    return drawings


def experiment(
    plan: str,
    output_dir: str,
    dataset: str | None = None,
    seeds: int | Sequence[int] = 0,
    only: str | Sequence[str] | None = None,
    jobs: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Run a plan; see the module's docstring.

    Args:
        plan: the plan's file.
        output_dir: folder for the runs and the table.
        dataset: value of ``{dataset}`` in the plan, for instance ``glas``.
        seeds: one or more seeds.
        only: names of the variants to run; the table lists all complete ones.
        jobs: number of parallel runs, which share the CPU cores.
        settings: overrides for all variants, applied after their own, for instance fewer epochs to screen many of them.

    Returns:
        The table, followed by messages about failed runs.
    """
    content, folder = read_plan(plan, dataset), Path(str(output_dir)).resolve()
    for variant in content["variants"].values():
        variant["settings"] |= settings or {}
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    names = list(content["variants"]) if only is None else [only] if isinstance(only, str) else list(only)
    unknown = set(names) - set(content["variants"])
    if unknown:
        raise BundleError(f"`only` must name variants of {plan}, got {sorted(unknown)}; check the spelling.")
    runs = [(name, seed) for name in names for seed in seeds]
    threads = None if jobs == 1 else max(1, cpu_cores() // jobs)
    phases = [[], [], []]  # later phases may use the classifiers, or start from the runs, of earlier ones
    for run in runs:
        variant = content["variants"][run[0]]
        later = 2 if variant.get("second_round_of") is not None else variant.get("classifier_of") is not None
        phases[later].append(run)
    failures = []
    with ThreadPoolExecutor(jobs) as pool, Progress(len(runs), "runs", "run") as bar:
        for phase in phases:
            for failure in pool.map(lambda run: run_variant(content, *run, folder, threads), phase):
                failures += [] if failure is None else [failure]
                bar.update()
    text = table(content, seeds, folder)
    write_text(folder / "table.md", text)
    for name, drawing in charts(content, seeds, folder).items():
        write_text(folder / f"{name}.svg", drawing)
    return "\n".join([text, *failures])
