import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from label_server import require_monailabel
from PIL import Image
from some_classes import some_classes

from scripts.label_app.server.settings import BundleSettings

NAMES = [f"image{number:02d}" for number in range(40)]


@pytest.fixture()
def datastore(tmp_path):
    require_monailabel()
    from scripts.label_app.server.datastore import TissueDatastore

    for name in NAMES:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    settings = BundleSettings(some_classes(["tumor"]), patch_size=[8, 8], model_mpp=None)
    datastore = TissueDatastore(str(tmp_path), settings, None)
    yield datastore
    datastore._observer.stop()


@pytest.fixture()
def hasty_threads():
    """Let threads take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_requests_at_the_same_time_leave_what_they_say(datastore, hasty_threads, tmp_path_factory):
    tags = tmp_path_factory.mktemp("sent") / "tags.json"
    tags.write_text(json.dumps(["tumor"]))

    def annotate(name):
        for _ in range(8):
            datastore.save_label(name, str(tags), "final", {})
            assert name in datastore.get_labeled_images() and name not in datastore.get_unlabeled_images()
            assert datastore.status()["total"] == len(NAMES)
            datastore.remove_label(name, "final")
            assert name in datastore.get_unlabeled_images() and not datastore.get_labels_by_image_id(name)
            datastore.update_image_info(name, {"seen": True})
        datastore.save_label(name, str(tags), "final", {})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(annotate, NAMES))
    assert sorted(datastore.get_labeled_images()) == NAMES
    assert all(datastore.get_image_info(name)["seen"] for name in NAMES)
