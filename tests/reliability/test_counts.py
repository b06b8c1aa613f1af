"""The numbers of malformed inputs in the document are those of the tables here."""

import re

from conftest import BUNDLE
from test_bad_configs import OVERLAYS, PLANS, SECTIONS
from test_bad_data import BAD_MASKS, DATALISTS, IMAGES, NAMES, TABLES
from test_bad_slides import SLIDES
from test_bad_weights import PARAMS, SAFE, TORCH

COUNTS = {
    "images": len(IMAGES) + 1,  # a small file of many pixels
    "masks": len(BAD_MASKS),
    "labels in file names": len(NAMES),
    "labels in tables": len(TABLES) + 1,  # no such file
    "labels in datalists": len(DATALISTS),
    "data sets' overlays, classes, thresholds": len(OVERLAYS),
    "releases (`source`), plans of `experiment`": len(SECTIONS) + len(PLANS),
    "weights of `torch.save`": len(TORCH),
    "weights as safetensors": len(SAFE),
    "MXNet's `.params`": len(PARAMS),
    "slides": len(SLIDES),
}


def test_the_document_has_the_numbers_of_the_tables():
    page = (BUNDLE / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (.+?) \| (\d+) \| (?:`tests/reliability|the same)", page, flags=re.MULTILINE))
    assert {kind: int(rows[kind]) for kind in COUNTS} == COUNTS
    assert sum(COUNTS.values()) >= 40
