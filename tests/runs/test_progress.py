import logging
from io import StringIO

import pytest
from ignite.engine import Engine

from scripts.runs import progress
from scripts.runs.progress import Progress, duration, show_progress


class Clock:
    """A clock that each step moves on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00 min"), (32.4, "0:32 min"), (3599.6, "1:00:00 h"), (3909, "1:05:09 h"), (90061, "25:01:01 h")],
)
def test_durations_have_one_form(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_there_is_a_line_every_three_minutes(caplog):
    caplog.set_level(logging.INFO, logger="scripts.runs.progress")
    clock = Clock()
    for _ in Progress(20, "slide 1", clock=clock).through(range(20)):
        clock.now += 50
    assert caplog.messages == [  # 50 s a step: the first lines after 4, 8, 12 and 16 steps
        "slide 1: 4 of 20 (20 %) in 3:20 min, about 13:20 min left.",
        "slide 1: 8 of 20 (40 %) in 6:40 min, about 10:00 min left.",
        "slide 1: 12 of 20 (60 %) in 10:00 min, about 6:40 min left.",
        "slide 1: 16 of 20 (80 %) in 13:20 min, about 3:20 min left.",
    ]


def test_a_terminal_has_the_bar_and_no_lines(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="scripts.runs.progress")
    terminal = StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    clock = Clock()
    with Progress(3, "masks", clock=clock) as bar:
        for _ in range(3):
            clock.now += 1000
            bar.update(numbers={"loss": 0.25})
    assert "masks: 100%" in terminal.getvalue() and "loss=0.25" in terminal.getvalue() and not caplog.messages


def test_other_processes_show_nothing(caplog):
    caplog.set_level(logging.INFO, logger="scripts.runs.progress")
    clock = Clock()
    for _ in Progress(5, "masks", show=False, clock=clock).through(range(5)):
        clock.now += 1000
    assert not caplog.messages


def test_lines_go_to_stderr_where_nobody_listens_to_the_log(monkeypatch, capsys):
    monkeypatch.setattr(progress.logger, "hasHandlers", lambda: False)
    progress.say("masks: 1 of 2")
    assert capsys.readouterr().err == "masks: 1 of 2\n"


def test_each_epoch_of_an_engine_is_counted_anew(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="scripts.runs.progress")
    clock = Clock()
    monkeypatch.setattr(progress, "Progress", lambda total, name: Progress(total, name, clock=clock))

    def step(engine, batch):
        clock.now += 100

    trainer = Engine(step)
    show_progress(trainer, "segmenter")
    trainer.run(range(3), max_epochs=2)
    assert caplog.messages == [
        "segmenter, epoch 1/2: 2 of 3 (66 %) in 3:20 min, about 1:40 min left.",
        "segmenter, epoch 2/2: 2 of 3 (66 %) in 3:20 min, about 1:40 min left.",
    ]
