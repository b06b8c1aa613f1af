"""Whole trainings on the demo, as ``python -m monai.bundle run``: from end to end, cut and resumed, by several
processes, and several beside each other."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from table import Conditions, Row, judged, last_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIGS = ["configs/train.json", "configs/lite.json", "configs/dataset_demo.json"]
TINY = {"classifier_batch_size": 4, "batch_size": 4, "eval_batch_size": 4}
LEAST_MEAN_IOU = 0.8  # of stage 2 on test; 0.854 on a CPU
FIRST_STEPS = 12  # that choose kernels, and are slower than the rest


def command_of(run_id: str, output_dir: Path, conditions: Conditions, configs=(), launcher=(), **settings) -> list[str]:
    """The command of a run of the bundle."""
    settings = {**(TINY if conditions.quick else {}), "output_dir": output_dir, **settings}
    if conditions.device == "cpu":
        settings["device"] = "$torch.device('cpu')"
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    launcher = [sys.executable, *(launcher or ("-m", "monai.bundle"))]
    return [*launcher, "run", run_id, "--config_file", str([*CONFIGS, *configs]), *options]


def start(command: list[str], log: Path) -> subprocess.Popen:
    """Start a command in the folder of this process, and keep what it says in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def require_success(process: subprocess.Popen, log: Path) -> None:
    """Wait for a command; raise what it said last if it failed."""
    if process.wait() != 0:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        reasons = [line for line in said if line.startswith(("Stopped:", "RuntimeError", "torch."))]
        raise RuntimeError(f"exit {process.returncode}: {last_line(chr(10).join(reasons or said))}")


def demo_data(conditions: Conditions, name: str = "demo", **counts: int) -> dict[str, str | int]:
    """Settings that draw demo data into the rows' folder, or find them there: the demo's own, or other ``counts``."""
    settings = {"output_dir": conditions.folder / "data" / name, **counts}
    if conditions.quick:
        settings |= {"size_px": 64, "num_train": 8, "num_val": 2, "num_test": 2}
    return {f"dataset_dir#{key}": value for key, value in settings.items()}


def mean_ious(output_dir: Path) -> dict[str, float]:
    """Published mean IoU of both stages on both splits."""
    names = [f"{stage}_{split}" for stage in ("classifier", "segmenter") for split in ("val", "test")]
    files = {name: output_dir / "scores" / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text())["protocols"]["published"]["mean_iou"] for name, path in files.items()}


def demo(conditions: Conditions):
    """The README's demo."""
    output_dir, log = conditions.folder / "demo_run", conditions.folder / "demo_run.txt"
    epochs = {"classifier_epochs": 1, "epochs": 1} if conditions.quick else {}
    began = time.monotonic()
    settings = {**demo_data(conditions), **epochs}
    require_success(start(command_of("training", output_dir, conditions, **settings), log), log)
    took, scores = time.monotonic() - began, mean_ious(output_dir)
    stages = json.loads((output_dir / "run.json").read_text())["stages"]
    figure = f"{took:.0f} s, drawing its data, scoring and pictures included"
    yield Row("demo, both stages", figure, numbers={"seconds": took, "stages": stages})
    found = {name: f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items()}
    verdict = judged(conditions, scores["segmenter_test"], least=LEAST_MEAN_IOU)
    if verdict:
        verdict["required"] = f"segmenter test {verdict['required']}"
    yield Row("demo, mean IoU", ", ".join(found.values()), "on a CPU segmenter test 0.854", numbers=scores, **verdict)


def cut_after_an_epoch(command: list[str], log: Path, checkpoint: Path) -> bool:
    """Start a training and kill it once the checkpoint of its first epoch is there; whether it was still at work."""
    process = start(command, log)
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.02)
    if process.poll() is not None and process.returncode != 0:
        require_success(process, log)
    process.kill()
    return process.wait() != 0


def largest_difference(first: Path, second: Path) -> float:
    """Between the weights in two files."""
    a, b = (torch.load(path, map_location="cpu", weights_only=True) for path in (first, second))
    if a.keys() != b.keys():
        raise ValueError(f"{first} and {second} must hold weights of the same names.")
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def resume(conditions: Conditions):
    """A training that is killed in each stage and repeated, beside one that is not: the same weights."""
    counts = {"num_train": 96, "num_val": 8, "num_test": 4}
    settings = demo_data(conditions, "small", **counts)
    settings |= {"classifier_epochs": 3, "epochs": 3, "deterministic": True}
    whole, cut = conditions.folder / "whole_run", conditions.folder / "cut_run"
    logs = [conditions.folder / "whole_run.txt", conditions.folder / "cut_run.txt"]
    uninterrupted = start(command_of("training", whole, conditions, **settings), logs[0])
    command = command_of("training", cut, conditions, **settings)
    cuts = [cut_after_an_epoch(command, logs[1], cut / "checkpoints" / f"{n}.pt") for n in ("classifier", "segmenter")]
    require_success(start(command, logs[1]), logs[1])
    require_success(uninterrupted, logs[0])
    for stage, name, was_cut in zip(("1", "2"), ("models/classifier/model.pt", "models/model.pt"), cuts, strict=True):
        difference = largest_difference(whole / name, cut / name)
        yield Row(
            f"killed in stage {stage} and repeated, `deterministic`",
            f"weights differ by at most {difference:.3g}",
            "a training that was not cut" if was_cut else "the kill came too late: nothing was cut",
            "0",
            ok=was_cut and difference == 0,
            numbers={"difference": difference, "cut": was_cut},
        )


def processes(conditions: Conditions):
    """Training by as many processes as there are GPUs, up to two, with NCCL (gloo on a CPU)."""
    number = min(2, torch.cuda.device_count()) if conditions.device == "cuda" else 1
    log = conditions.folder / "processes_run.txt"
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}", "-m", "monai.bundle")
    settings = demo_data(conditions, "small", num_train=96, num_val=8, num_test=4)
    settings |= {"classifier_epochs": 1, "epochs": 1}
    configs, began = ["configs/multi_gpu_train.json"], time.monotonic()
    command = command_of("training", conditions.folder / "processes_run", conditions, configs, launcher, **settings)
    require_success(start(command, log), log)
    took, backend = time.monotonic() - began, "NCCL" if conditions.device == "cuda" else "gloo"
    what = f"`torchrun --nproc_per_node={number}` ({backend}), one epoch a stage"
    yield Row(what, f"{took:.0f} s, exit 0", required="exit 0", ok=True, numbers={"seconds": took, "processes": number})


def step_times(output_dir: Path, first: int, tag: str = "classifier_loss") -> list[tuple[int, float]]:
    """Number of each step after the ``first`` that TensorBoard was told of, and when, in seconds."""
    events = EventAccumulator(str(output_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.wall_time) for event in events.Scalars(tag) if event.step > first]


def seconds_per_step(times: list[tuple[int, float]], since: float, until: float) -> float:
    """Of the steps that ended in a span of time, ends of epochs included."""
    within = [(step, when) for step, when in times if since <= when <= until]
    if len(within) < 2 or within[-1][0] == within[0][0]:
        raise RuntimeError("the trainings must have steps at the same time, and had fewer than two")
    return (within[-1][1] - within[0][1]) / (within[-1][0] - within[0][0])


def beside(conditions: Conditions):
    """Four trainings of stage 1 that are started at once, against one alone."""
    data, count = demo_data(conditions), conditions.of(4, 2)

    def trainings(number, epochs):
        folders = [conditions.folder / f"beside_{number}_{index}" for index in range(number)]
        logs = [folder.with_suffix(".txt") for folder in folders]
        settings = {**data, "classifier_epochs": epochs}
        commands = [command_of("train_classifier", folder, conditions, **settings) for folder in folders]
        running = [start(command, log) for command, log in zip(commands, logs, strict=True)]
        for process, log in zip(running, logs, strict=True):
            require_success(process, log)
        return [step_times(folder, conditions.of(FIRST_STEPS, 1)) for folder in folders]

    (times,) = trainings(1, conditions.of(10, 2))
    alone = seconds_per_step(times, times[0][1], times[-1][1])
    all_times = trainings(count, conditions.of(40, 2))
    since, until = max(times[0][1] for times in all_times), min(times[-1][1] for times in all_times)
    if conditions.quick:  # too short to overlap
        since, until = 0.0, math.inf
    together = [seconds_per_step(times, since, until) for times in all_times]
    slowest = max(together) / alone
    yield Row(
        f"{count} trainings of stage 1 at once, lite, {len(os.sched_getaffinity(0))} cores",
        f"{min(together) * 1e3:.1f} to {max(together) * 1e3:.1f} ms a step each",
        f"one alone {alone * 1e3:.1f} ms: {slowest:.2f} ×",
        numbers={"alone": alone, "together": together, "ratio": slowest},
        **judged(conditions, slowest, most=4, unit=" ×"),
    )
