"""The acceptance table itself, without a GPU."""

import json
import math
import subprocess
import sys
import types
from pathlib import Path

import acceptance
import pytest
import torch
from conftest import BUNDLE
from table import HEADER, Conditions, Row, failed, judged, last_line, not_run

KIT = Path(acceptance.__file__)


@pytest.fixture()
def conditions(tmp_path):
    return Conditions("cpu", True, tmp_path)


@pytest.fixture()
def group_of(monkeypatch):
    """Make a group ``trial`` of lines of Python that a process of its own runs."""

    def make(tmp_path, code, seconds=60):
        (tmp_path / "rows_trial.py").write_text(f"from table import Row\n\ndef trial(conditions):\n{code}\n")
        script = tmp_path / "trial.py"
        script.write_text(
            "import sys\n"
            f"sys.path[:0] = [{str(KIT.parent)!r}, {str(tmp_path)!r}]\n"
            "import acceptance\n"
            'acceptance.GROUPS["trial"] = acceptance.Group("a trial", "rows_trial", "trial", 60)\n'
            "sys.exit(acceptance.main())\n"
        )
        monkeypatch.setitem(acceptance.GROUPS, "trial", acceptance.Group("a trial", "rows_trial", "trial", seconds))
        monkeypatch.setattr(acceptance, "__file__", str(script))

    return make


def rows_in_this_process(name, conditions, monkeypatch):
    monkeypatch.chdir(BUNDLE)
    return list(acceptance.rows_of(name, conditions))


def test_a_row_is_a_line_of_markdown():
    row = Row("a | b", "1 ms", "2 ms:\n2 ×", "≥ 1.5 ×", True)
    assert row.markdown() == "| a \\| b | 1 ms | 2 ms: 2 × | ≥ 1.5 × | yes |"
    assert Row("a", "1").markdown().endswith("| – |") and failed("a", "b").markdown().endswith("| **no** |")
    assert not_run("a", "no time").markdown() == "| a | no time |  |  | not run |"


@pytest.mark.parametrize(("value", "ok"), [(1.4, False), (1.5, True)])
def test_what_is_required_is_judged(tmp_path, value, ok):
    full, quick = Conditions("cuda", False, tmp_path), Conditions("cuda", True, tmp_path)
    assert judged(full, value, least=1.5, unit=" ×") == {"required": "≥ 1.5 ×", "ok": ok}
    assert judged(full, -value, most=-1.5)["ok"] == ok
    assert not judged(full, math.nan, least=1.5)["ok"] and not judged(full, math.nan, most=1.5)["ok"]
    assert judged(quick, value, least=1.5) == judged(full, value) == {}


def test_the_reason_is_the_last_line_and_the_first_error():
    assert last_line("a\nRuntimeError: b\n\n") == "RuntimeError: b" and last_line("") == "nothing was said"
    chained = (
        "ValueError: c\n\nThe above exception was the direct cause of the following exception:\n\nRuntimeError: d\n"
    )
    assert last_line(chained) == "ValueError: c"


def test_a_failure_leaves_the_rows_before_it(tmp_path, conditions, group_of):
    group_of(tmp_path, '    yield Row("first", "1", ok=True)\n    raise ValueError("it broke")')
    first, second = acceptance.run_group("trial", conditions, 60)
    assert first == Row("first", "1", ok=True)
    assert second == failed("a trial (trial)", "ValueError: it broke")


def test_a_crash_is_a_row(tmp_path, conditions, group_of):
    group_of(tmp_path, "    import os\n    os.kill(os.getpid(), 11)\n    yield")
    (row,) = acceptance.run_group("trial", conditions, 60)
    assert row.figure.startswith("failed: signal 11") and row.ok is False


def test_a_group_that_takes_too_long_is_stopped_with_what_it_started(tmp_path, conditions, group_of):
    pid = tmp_path / "pid"
    code = (
        '    yield Row("first", "1")\n    import subprocess\n    child = subprocess.Popen(["sleep", "600"])\n'
        f"    open({str(pid)!r}, 'w').write(str(child.pid))\n    child.wait()"
    )
    group_of(tmp_path, code, seconds=8)
    rows = acceptance.run_group("trial", conditions, 60)
    assert rows == [Row("first", "1"), failed("a trial (trial)", "stopped after its limit of 8 s")]
    state = Path(f"/proc/{pid.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_the_table_is_printed_written_and_judged(tmp_path, capsys):
    rows = [Row("a", "1", ok=True), Row("b", "2"), not_run("c", "no time was left")]
    assert acceptance.print_table(iter(rows), tmp_path / "rows.json", "cpu", True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [*HEADER.splitlines(), *(row.markdown() for row in rows)]
    assert lines[-1] == "3 rows, 0 failed or missed what is required, 1 not run."
    found = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert found["passed"] and [row["what"] for row in found["rows"]] == ["a", "b", "c"]
    assert not acceptance.print_table(iter([*rows, failed("d", "e")]), None, "cpu", True)


def test_what_time_does_not_allow_is_not_run(conditions):
    rows = list(acceptance.measure(["environment", "demo"], conditions, minutes=0))
    assert [(row.figure, row.ok, row.run) for row in rows] == 2 * [("no time was left", None, False)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so():
    result = subprocess.run([sys.executable, KIT], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "PyTorch finds no GPU here; --device cpu --quick tries the rows out on the CPU.\n"


def test_every_group_has_its_function():
    for group in acceptance.GROUPS.values():
        assert callable(getattr(acceptance.importlib.import_module(group.module), group.function))


def test_environment(conditions, monkeypatch):
    card, peaks = rows_in_this_process("environment", conditions, monkeypatch)
    assert card.figure == "no GPU" and torch.__version__ in card.reference
    assert set(peaks.numbers) == {"float32", "TF32", "bfloat16"} and all(value > 0 for value in peaks.numbers.values())


def test_a_device_agrees_with_itself(conditions, monkeypatch, one_thread):
    rows = rows_in_this_process("parity_lite", conditions, monkeypatch)
    exact, rough = rows[0].numbers, rows[2].numbers
    assert len(rows) == 6 and exact["equal"] == 1 and set(exact["differences"].values()) == {0}
    assert 0.9 < rough["equal"] and all(0 < value < 0.5 for value in rough["differences"].values())


def test_blocks_of_steps_and_turns_between_them():
    import rows_steps

    turns = []
    blocks = rows_steps.Blocks(lambda: turns.append(len(steps)) or 6.0, steps=3, turns=2, warm_up=4, device="cpu")
    steps, stopped = [], []
    engine = types.SimpleNamespace(terminate=lambda: stopped.append(len(steps)))
    for iteration in range(1, blocks.length + 1):
        if stopped:
            break
        steps.append(iteration)
        engine.state = types.SimpleNamespace(iteration=iteration)
        blocks(engine)
    assert turns == [7, 10, 13] and stopped == [13] and len(blocks.own) == 2
    assert blocks.medians()[1] == 2.0


def test_steps_per_second_of_trainings_at_once():
    from rows_training import seconds_per_step

    times = [(step, 100 + 0.5 * step) for step in range(20)]
    assert seconds_per_step(times, 0, math.inf) == pytest.approx(0.5)
    assert seconds_per_step(times, 103, 105) == pytest.approx(0.5)
    with pytest.raises(RuntimeError, match="at the same time"):
        seconds_per_step(times, 200, 300)


@pytest.mark.slow
def test_every_row_runs_on_a_cpu(tmp_path):
    groups = [name for name in acceptance.GROUPS if not name.startswith("compiled")]
    command = [sys.executable, KIT, *groups, "--device", "cpu", "--quick", "--minutes", "30"]
    result = subprocess.run([*command, "--json", tmp_path / "rows.json"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    found = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert found["passed"] and all(row["run"] for row in found["rows"])


@pytest.mark.gpu
def test_a_gpu_passes(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    result = subprocess.run([sys.executable, KIT, "--minutes", "20"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
