import json

import pytest

from scripts.label_app.server.versions import Versions


def make_version(folder, complete=True):
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "model.pt").write_bytes(b"weights")
    stages = (
        {"run": {"result": "models/model.pt"}}
        if complete
        else {"copy_pixel_masks": {"result": "pseudo_masks/manifest.json"}}
    )
    (folder / "run.json").write_text(json.dumps({"stages": stages}))


@pytest.fixture()
def versions(tmp_path):
    make_version(tmp_path / "bundle")
    return Versions(tmp_path / "bundle", tmp_path / "versions")


def test_the_bundles_own_network_comes_first(versions):
    assert versions.names() == ["base"]
    assert versions.weights() == versions.weights("base") == versions.bundle / "models" / "model.pt"
    assert versions.new_folder() == versions.folder / "0001"


def test_the_newest_finished_version_answers(versions):
    make_version(versions.folder / "0001")
    make_version(versions.folder / "0002")
    make_version(versions.folder / "0003", complete=False)
    assert versions.names() == ["base", "0001", "0002"]
    assert versions.run_folder() == versions.folder / "0002"
    assert versions.run_folder("0001") == versions.folder / "0001"
    assert [versions.name_of(versions.run_folder(name)) for name in versions.names()] == versions.names()
    assert versions.new_folder() == versions.folder / "0004"  # nothing of 0003 is mixed into it


def test_a_version_whose_weights_are_gone_is_none(versions):
    make_version(versions.folder / "0001")
    (versions.folder / "0001" / "models" / "model.pt").unlink()
    assert versions.names() == ["base"]


@pytest.mark.parametrize("name", ["0009", "../bundle", "", "0003"])
def test_other_names_are_refused(versions, name):
    make_version(versions.folder / "0003", complete=False)
    with pytest.raises(ValueError, match=r"`version` must be one of \['newest', 'base'\]"):
        versions.run_folder(name)


def test_a_bundle_without_a_network_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="has no network yet: train one"):
        Versions(tmp_path, tmp_path / "versions").weights()
