import json
import math

import pytest
import torch

from scripts.files.atomic import atomic_path, write_checkpoint, write_csv, write_json


class PowerCutError(Exception):
    pass


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.name == "file.txt"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a", "b", "file.txt"]


@pytest.mark.parametrize("error", [PowerCutError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error):
        with atomic_path(tmp_path / "file.txt") as temporary:
            temporary.write_text("half")
            raise error
    assert names(tmp_path) == []


def test_an_error_leaves_the_old_content(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(PowerCutError):
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise PowerCutError
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_the_old_content_is_there_until_the_block_ends(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_path(str(path)) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["file.txt"]


def test_folders_appear_whole(tmp_path):
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "inner.txt").write_text("content")
        assert not (tmp_path / "folder").exists()
    assert names(tmp_path) == ["folder", "inner.txt"]
    assert (tmp_path / "folder" / "inner.txt").read_text() == "content"


def test_a_folder_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(PowerCutError):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "inner.txt").write_text("half")
            raise PowerCutError
    assert names(tmp_path) == []


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        with atomic_path(path):
            pass
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_json_comes_back(tmp_path):
    content = {"scores": [0.5, None, 1], "name": "Gewebe – größer", "nested": {"a": True}}
    write_json(tmp_path / "new" / "scores.json", content)
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == content
    assert (tmp_path / "new" / "scores.json").read_text().endswith("}\n")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_without_nan_and_infinity(tmp_path, number):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"score": number})
    assert path.read_text() == "old" and names(tmp_path) == ["scores.json"]


def test_checkpoints_come_back_without_unpickling_code(tmp_path):
    content = {"weights": {"w": torch.arange(6.0).view(2, 3)}, "epoch": 3, "best": None, "rates": [0.1, 0.2]}
    write_checkpoint(tmp_path / "checkpoint.pt", content)
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(loaded.pop("weights")["w"], content.pop("weights")["w"])
    assert loaded == content


def test_a_checkpoint_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"epoch": 1})
    with pytest.raises(Exception, match="pickle|local object"):  # the latter from Python 3.13 on
        write_checkpoint(path, {"epoch": 2, "function": lambda: None})
    assert torch.load(path, weights_only=True) == {"epoch": 1} and names(tmp_path) == ["checkpoint.pt"]


def test_csv_has_empty_cells_for_none(tmp_path):
    write_csv(tmp_path / "a" / "table.csv", ["name", "iou"], [["tumor, solid", 0.5], ["rest", None]])
    assert (tmp_path / "a" / "table.csv").read_text("utf-8-sig").splitlines() == [
        "name,iou",
        '"tumor, solid",0.5',
        "rest,",
    ]
