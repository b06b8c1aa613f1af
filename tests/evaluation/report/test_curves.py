import re
from xml.etree import ElementTree

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from scripts.evaluation.report.curves import chart, read_curves, smooth, ticks


def write_events(folder, tag, points, walltime):
    with SummaryWriter(folder) as writer:
        for step, value in points:
            writer.add_scalar(tag, value, step, walltime=walltime + step)


def test_steps_that_were_done_again_count_once(tmp_path):
    write_events(tmp_path, "loss", [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)], walltime=1000)
    write_events(tmp_path, "loss", [(3, 5.0), (4, 4.0)], walltime=2000)  # resumed after step 2
    assert read_curves(tmp_path) == {"loss": [(1, 9.0), (2, 8.0), (3, 5.0), (4, 4.0)]}
    write_events(tmp_path, "loss", [(1, 3.0), (2, 2.0)], walltime=3000)  # done again, with fewer steps
    assert read_curves(tmp_path) == {"loss": [(1, 3.0), (2, 2.0)]}


def test_every_step_of_a_long_training_is_read(tmp_path):
    write_events(tmp_path, "loss", [(step, step / 2) for step in range(12_000)], walltime=0)
    assert read_curves(tmp_path)["loss"] == [(step, step / 2) for step in range(12_000)]


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    write_events(tmp_path, "loss", [(1, 2.0), (2, float("nan"))], walltime=0)
    write_events(tmp_path, "ruined", [(1, float("inf"))], walltime=0)
    assert read_curves(tmp_path) == {"loss": [(1, 2.0)]}
    assert read_curves(tmp_path / "none") == {}


def test_what_a_killed_process_left_of_its_events_is_read(tmp_path):
    write_events(tmp_path, "loss", [(1, 2.0), (2, 1.0)], walltime=0)
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    assert read_curves(tmp_path) == {"loss": [(1, 2.0)]}


def test_smoothing_averages_neighbours_and_keeps_straight_lines():
    values = np.random.default_rng(0).random(100)
    expected = [np.mean(values[max(0, k - 2) : k + 3]) for k in range(100)]
    assert smooth(values) == pytest.approx(expected)
    assert smooth([3.0, 1.0, 2.0]) == pytest.approx([3, 1, 2])  # too few to smooth


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.489, 0.574, [0.48, 0.5, 0.52, 0.54, 0.56, 0.58]),
        (1, 624, [0, 100, 200, 300, 400, 500, 600, 700]),
        (-3, 12, [-4, -2, 0, 2, 4, 6, 8, 10, 12]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 0.3, -5.0])
def test_ticks_of_a_single_value_enclose_it(value):
    found = ticks(value, value)
    assert found[0] < value < found[-1] and len(found) >= 3


def corners(svg, kind):
    """The corners of a curve, as numbers from 0 to 1 between the ends of the axes."""
    text = re.search(rf'<polyline class="{kind}" points="([^"]*)"', svg)[1]
    return [((float(a) - 46) / 304, (182 - float(b)) / 172) for a, b in (pair.split(",") for pair in text.split())]


def test_a_curve_goes_through_its_points():
    svg = chart("val_mean_iou", [(1, 0.2), (2, 0.6), (5, 1.0)], "epoch")
    expected = [(0, 0), (0.25, 0.5), (1, 1)]  # the axes go from 1 to 5 and from 0.2 to 1
    assert np.allclose(corners(svg, "line"), expected, atol=1e-3)
    assert re.findall(r'class="y"[^>]*>([^<]*)', svg) == ["0.2", "0.4", "0.6", "0.8", "1"]
    assert re.findall(r'class="x"[^>]*>([^<]*)', svg) == ["1", "2", "3", "4", "5", "epoch"]
    assert svg.count("<circle") == 3 and 'class="raw"' not in svg


def test_a_spike_is_cut_off_and_named():
    points = [(step, 50.0 if step == 30 else 1 - step / 500) for step in range(1, 201)]
    svg = chart("loss", points, "step", smoothed=True)
    assert "highest: 50<" in svg and "<circle" not in svg
    assert max(y for _, y in corners(svg, "raw")) == pytest.approx(1, abs=1e-3)
    assert len(corners(svg, "raw")) == len(corners(svg, "line")) == 200


def test_a_long_curve_is_thinned_and_its_name_escaped():
    svg = chart('<b>"', [(step, step) for step in range(5000)], "step")
    assert len(corners(svg, "line")) <= 600 and "<b>" not in svg
    assert ElementTree.fromstring(svg).get("aria-label") == '<b>" by step: 0 at 0, 5e+03 at 4999'


def test_a_single_point_is_shown():
    svg = chart("val_mean_iou", [(20, 0.5)], "epoch")
    assert corners(svg, "line")[0][0] == pytest.approx(0.5) and svg.count("<circle") == 1
    assert re.findall(r'class="x"[^>]*>([^<]*)', svg) == ["20", "epoch"]
