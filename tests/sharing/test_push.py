import shutil
import socket
from types import SimpleNamespace

import pytest

from scripts.sharing.push import push

REPO = "someone/tissues"


@pytest.fixture()
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network was used")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture()
def bundle(exported_bundle, tmp_path):
    shutil.copytree(exported_bundle, tmp_path / "tissues")
    (tmp_path / "tissues" / "eval").mkdir()
    (tmp_path / "tissues" / "eval" / "schema.json").write_text("{}")
    return tmp_path / "tissues"


def test_a_dry_run_lists_what_would_go_and_needs_no_network(bundle, no_network):
    said = push(str(bundle), REPO, dry_run=True)
    size = (bundle / "models" / "model.pt").stat().st_size
    assert f"{size:,} models/model.pt" in said and "configs/train.json" in said and "schema.json" not in said
    assert said.endswith(f"Would upload {len(said.splitlines()) - 1} files to {REPO}, tag 0.1.0. Nothing was uploaded.")


def test_a_push_makes_the_repository_uploads_and_tags_in_this_order(bundle, monkeypatch, no_network):
    calls = []

    class Api:
        def __getattr__(self, name):
            return lambda *args, **kwargs: calls.append((name, args, kwargs)) or SimpleNamespace(commit_url="there")

    monkeypatch.setattr("scripts.sharing.push.HfApi", Api)
    assert push(str(bundle), REPO, private=True) == "Uploaded: there, tag 0.1.0."
    assert [name for name, _, _ in calls] == ["create_repo", "upload_folder", "create_tag"]
    assert calls[0][2]["private"] and calls[0][2]["exist_ok"]
    assert calls[1][2]["folder_path"] == bundle and "eval/*" in calls[1][2]["ignore_patterns"]
    assert calls[2][2]["tag"] == "0.1.0"


def test_an_incomplete_bundle_is_refused(bundle, no_network):
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"without \['models/model.pt'\]"):
        push(str(bundle), REPO, dry_run=True)


def test_a_card_without_a_licence_is_refused(bundle, no_network):
    (bundle / "README.md").write_text("---\nlibrary_name: monai\n---\ntext")
    with pytest.raises(ValueError, match="README.md must name a licence"):
        push(str(bundle), REPO, dry_run=True)


@pytest.mark.parametrize(("owner", "fits"), [("someone", True), ("MONAI", False)])
def test_large_files_must_point_to_the_repository(bundle, no_network, owner, fits):
    url = f"https://huggingface.co/{owner}/tissues/resolve/0.1.0/models/model.pt"
    (bundle / "large_files.yml").write_text(f"large_files:\n- path: models/model.pt\n  url: {url}\n")
    if fits:
        push(str(bundle), REPO, dry_run=True)
    else:
        with pytest.raises(ValueError, match="must point to someone/tissues at 0.1.0"):
            push(str(bundle), REPO, dry_run=True)
