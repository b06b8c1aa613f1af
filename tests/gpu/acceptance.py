"""What a GPU shows of the bundle, in one table: python tests/gpu/acceptance.py [--minutes 8] [--json FILE] [GROUP ...]

Run in the repository's folder. Each group of rows runs in a process of its own with a limit of time, the most
important first, so that one failure leaves the rest. Ends with 1 if a row failed or missed what is required of it, with
2 if there is no GPU. ``--device cpu --quick`` tries every row out on tiny sizes, without requirements of speed.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundle"
sys.path[:0] = [str(path) for path in (BUNDLE, ROOT / "tests" / "benchmarks", ROOT / "tests", Path(__file__).parent)]

import torch  # noqa: E402
from table import HEADER, Conditions, Row, failed, last_line, not_run  # noqa: E402


class Group(NamedTuple):
    """Rows that share a process.

    Args:
        what: what they show.
        module: where they are.
        function: takes the conditions and yields the rows.
        seconds: the limit of their time.
    """

    what: str
    module: str
    function: str
    seconds: int


GROUPS = {  # the most important first
    "environment": Group("the card and its peak", "rows_environment", "environment", 90),
    "demo": Group("the demo from end to end", "rows_training", "demo", 240),
    "parity_lite": Group("CPU and GPU, lite", "rows_parity", "lite", 120),
    "steps_esfan": Group("steps of ESFAN", "rows_steps", "esfan", 180),
    "steps_ibdr": Group("steps of IBDR", "rows_steps", "ibdr", 180),
    "steps_lite": Group("steps of lite", "rows_steps", "lite", 120),
    "resume": Group("stop and resume", "rows_training", "resume", 240),
    "parity_esfan": Group("CPU and GPU, ESFAN", "rows_parity", "esfan", 180),
    "parity_ibdr": Group("CPU and GPU, IBDR", "rows_parity", "ibdr", 180),
    "processes": Group("several processes", "rows_training", "processes", 180),
    "beside": Group("four trainings on one device", "rows_training", "beside", 180),
    "masks": Group("CAMs and pseudo masks", "rows_inference", "masks", 180),
    "images": Group("inference of images", "rows_inference", "images", 120),
    "slides": Group("inference of slides", "rows_inference", "slides", 180),
    "float32_esfan": Group("steps of ESFAN in float32", "rows_steps", "float32_esfan", 180),
    "float32_ibdr": Group("steps of IBDR in float32", "rows_steps", "float32_ibdr", 180),
    "compiled_esfan": Group("compiled steps of ESFAN", "rows_steps", "compiled_esfan", 600),
    "compiled_ibdr": Group("compiled steps of IBDR", "rows_steps", "compiled_ibdr", 600),
}


def rows_of(name: str, conditions: Conditions) -> Iterator[Row]:
    """Measure the rows of a group in this process, which must be in the folder ``bundle``."""
    group = GROUPS[name]
    yield from getattr(importlib.import_module(group.module), group.function)(conditions)


def write_rows(name: str, conditions: Conditions, path: Path) -> None:
    """Append each row of a group to a file of JSON lines as soon as it is measured."""
    os.chdir(BUNDLE)
    for row in rows_of(name, conditions):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row.as_json()) + "\n")


def run_group(name: str, conditions: Conditions, seconds_left: float) -> list[Row]:
    """Run a group in a process of its own; what fails or takes too long is a row too."""
    group = GROUPS[name]
    limit = min(group.seconds, seconds_left)
    path, log = conditions.folder / f"{name}.jsonl", conditions.folder / f"{name}.log"
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, name, "--device", conditions.device, "--rows", str(path)]
    command += ["--folder", str(conditions.folder), *(["--quick"] if conditions.quick else [])]
    # on maps of a few pixels a second thread only waits
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if conditions.quick else {})
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_with_children(process)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    if code is None and limit < group.seconds:
        rows.append(not_run(f"{group.what} ({name})", f"cut off after {limit:.0f} s: time is out"))
    elif code is None:
        rows.append(failed(f"{group.what} ({name})", f"stopped after its limit of {group.seconds} s"))
    elif code != 0:
        why = last_line(log.read_text(encoding="utf-8", errors="replace"))
        rows.append(failed(f"{group.what} ({name})", why if code > 0 else f"signal {-code}; {why}"))
    return rows


def end_with_children(process: subprocess.Popen) -> None:
    """End a process with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nothing is left of it
        pass
    process.wait()


def measure(names: list[str], conditions: Conditions, minutes: float) -> Iterator[Row]:
    """The rows of groups, in order, until the time is out."""
    end = time.monotonic() + 60 * minutes
    for name in names:
        left = end - time.monotonic()
        if left < (1 if conditions.quick else 15):
            yield not_run(f"{GROUPS[name].what} ({name})", "no time was left")
            continue
        start = time.monotonic()
        yield from run_group(name, conditions, left)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def write_json(path: Path, rows: list[Row], device: str, quick: bool) -> None:
    """Write all rows as JSON."""
    found = {"device": device, "quick": quick, "passed": passed(rows), "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def passed(rows: list[Row]) -> bool:
    """Whether no row failed or missed what is required of it."""
    return all(row.ok is not False for row in rows)


def print_table(rows: Iterator[Row], json_path: Path | None, device: str, quick: bool) -> bool:
    """Print rows as they come, so that what was measured is there whatever happens after; whether they passed."""
    done: list[Row] = []
    print(HEADER, flush=True)
    for row in rows:
        done.append(row)
        print(row.markdown(), flush=True)
        if json_path is not None:
            write_json(json_path, done, device, quick)
    missed, left_out = sum(row.ok is False for row in done), sum(not row.run for row in done)
    print(f"\n{len(done)} rows, {missed} failed or missed what is required, {left_out} not run.")
    return passed(done)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"some of {', '.join(GROUPS)}; without, all")
    parser.add_argument("--minutes", type=float, default=8, help="of all rows together (8)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the rows out")
    parser.add_argument("--folder", type=Path, help="keep what rows write, logs too (a temporary folder)")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # of a group's own process
    options = parser.parse_args(arguments)
    unknown = [name for name in options.groups if name not in GROUPS]
    if unknown:
        parser.error(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no GPU here; --device cpu --quick tries the rows out on the CPU.", file=sys.stderr)
        return 2
    if options.rows is not None:
        write_rows(options.groups[0], Conditions(options.device, options.quick, options.folder), options.rows)
        return 0
    json_path = None if options.json is None else options.json.resolve()
    names = [name for name in GROUPS if not options.groups or name in options.groups]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        conditions = Conditions(options.device, options.quick, folder)
        rows = measure(names, conditions, options.minutes)
        return 0 if print_table(rows, json_path, options.device, options.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
