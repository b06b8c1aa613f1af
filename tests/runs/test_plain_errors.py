import logging
import signal
import subprocess
import sys

import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigParser
from PIL import Image

from scripts.data.items import find_images
from scripts.data.labels import parse_label
from scripts.data.mask_values import load_mask, lookup_table
from scripts.errors import BundleError
from scripts.runs.plain_errors import causes, install, plain_cause, plainly, report
from scripts.training.augmentation import PrepareBatch

NAMELESS = "'x.png' must have 2 labels such as '[1 0]' in its name, got []; rename it, or provide the labels in a CSV"


def caught(action):
    """The error that ``action`` raises, with the traceback to here."""
    with pytest.raises(BaseException) as info:
        action()
    return info.value


def wrapped(action, levels=2):
    """``action`` within as many levels of a config, each with an error of its own."""
    if levels == 0:
        return action()
    try:
        return wrapped(action, levels - 1)
    except Exception as error:
        raise RuntimeError(f"level {levels} failed") from error


def reported(error, capsys):
    report(type(error), error, error.__traceback__)
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_the_package_s_own_errors_are_told_in_plain_words(capsys, levels):
    error = caught(lambda: wrapped(lambda: parse_label("x.png", 2), levels))
    assert reported(error, capsys) == f"\nStopped: {NAMELESS} or datalist.\n"


def test_monai_s_words_around_an_error_are_left_out(capsys):
    parser = ConfigParser({"a": {"_target_": "scripts.data.labels.parse_label", "name": "x.png", "num_classes": 2}})
    error = caught(lambda: parser.get_parsed_content("a"))
    assert isinstance(error, RuntimeError) and "must have" not in str(error)
    assert reported(error, capsys) == f"\nStopped: {NAMELESS} or datalist.\n"


def test_missing_files_are_told_in_plain_words_whoever_misses_them(capsys, tmp_path):
    path = tmp_path / "missing.png"
    error = caught(lambda: wrapped(path.read_bytes))
    assert reported(error, capsys) == f"\nStopped: [Errno 2] No such file or directory: '{path}'\n"
    error = caught(lambda: wrapped(lambda: find_images(path)))
    assert reported(error, capsys) == (
        f"\nStopped: {path} must be a folder of images, but it does not exist; check `dataset_dir`.\n"
    )


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_errors_within_come_out_without_those_around_them(levels):
    def read():
        try:
            int("x")
        except ValueError as error:
            raise BundleError("`n` must be a number, got 'x'.") from error

    with pytest.raises(BundleError, match="`n` must be") as caught, plainly():
        wrapped(read, levels)
    assert [type(error) for error in causes(caught.value)] == [BundleError, ValueError]
    with pytest.raises(FileNotFoundError), plainly():
        wrapped(lambda: open("missing"), levels)
    with pytest.raises(RuntimeError if levels else ZeroDivisionError), plainly():
        wrapped(lambda: 1 / 0, levels)


def broken_transform(image, label):
    raise ValueError("not for this package to say")


def test_other_errors_keep_their_whole_traceback(capsys):
    batch = {"image": torch.zeros(1, 3, 2, 2)}
    error = caught(lambda: wrapped(lambda: PrepareBatch([broken_transform])(batch, torch.device("cpu"))))
    err = reported(error, capsys)
    assert "Stopped" not in err and err.count("Traceback (most recent call last)") == 3
    assert "in broken_transform" in err and "ValueError: not for this package to say" in err
    assert "RuntimeError: level 1 failed" in err and err.endswith("RuntimeError: level 2 failed\n")


def test_an_error_that_was_never_raised_is_plain_if_it_is_about_a_file():
    assert plain_cause(ValueError("x")) is None
    error = OSError("x")
    assert plain_cause(error) is error


def test_the_package_s_words_come_before_what_a_library_said(capsys, tmp_path):
    path = tmp_path / "mask.png"
    path.write_text("no image")
    error = caught(lambda: wrapped(lambda: load_mask(path, lookup_table({"0": 0}), (1, 1))))
    assert [type(cause).__name__ for cause in causes(error)][-2:] == ["BundleError", "UnidentifiedImageError"]
    assert reported(error, capsys).startswith(f"\nStopped: {path} must be a readable image, got UnidentifiedImageError")


def test_the_package_s_first_words_name_the_file(capsys, tmp_path):
    Image.new("L", (1, 1), 7).save(tmp_path / "mask.png")
    error = caught(lambda: wrapped(lambda: load_mask(tmp_path / "mask.png", lookup_table({"0": 0}), (1, 1))))
    assert reported(error, capsys).startswith(f"\nStopped: {tmp_path / 'mask.png'}: masks must only have values that")


def test_the_log_has_the_error_in_full(caplog, capsys):
    caplog.set_level(logging.DEBUG, logger="scripts.runs.plain_errors")
    error = caught(lambda: wrapped(lambda: parse_label("x.png", 2)))
    reported(error, capsys)
    assert caplog.messages == ["The error in full:"]
    assert "in parse_label" in caplog.text and "RuntimeError: level 2 failed" in caplog.text


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(tmp_path):
    code = (
        "import os, signal; from scripts.runs import plain_errors; signal.signal(2, signal.default_int_handler); "
        "plain_errors.install(); os.kill(os.getpid(), 2)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(BUNDLE)}, capture_output=True, text=True
    )
    assert result.returncode in (130, -signal.SIGINT)
    assert (
        result.stderr.startswith("\nStopped: interrupted; complete stages, finished epochs")
        and "\n" not in result.stderr[1:-1]
    )


def test_install_takes_over_the_reports(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # and set back afterwards
    install()
    assert sys.excepthook is report


@pytest.mark.parametrize(("statement", "plain"), [("open('missing.png')", True), ("int('x')", False)])
def test_a_command_ends_with_the_report(tmp_path, statement, plain):
    code = f"from scripts.runs import plain_errors; plain_errors.install(); {statement}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(BUNDLE)}, capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stdout == ""
    if plain:
        assert result.stderr == "\nStopped: [Errno 2] No such file or directory: 'missing.png'\n"
    else:
        assert "Stopped" not in result.stderr and "Traceback (most recent call last)" in result.stderr
