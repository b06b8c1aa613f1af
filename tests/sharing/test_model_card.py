import dataclasses
import json
import re

import pytest
import yaml
from conftest import BUNDLE
from huggingface_hub import ModelCard

from scripts.sharing.export import default_config
from scripts.sharing.model_card import Facts, hub_card, licences, read_cards, scores_of, text_card

SECTIONS = ["Overview", "Data", "Preprocessing", "Training configuration", "Input", "Output", "Performance"]
SECTIONS += ["Limitations", "Commands", "References", "License"]
CARDS = read_cards(BUNDLE / "docs" / "cards.json")
SCORE = {"mean_iou": 0.81239, "mean_dice": 0.9, "images": 7, "classes": {"gland": {"iou": 0.75}, "rest": {"iou": None}}}


def facts(method="esfan", dataset="glas", **changes):
    config = default_config(method, "lite", BUNDLE / "configs" / f"dataset_{dataset}.json")
    run = {"seed": 3, "versions": {"torch": "2.14.1"}}
    known = Facts(
        name="tissues",
        version="0.1.0",
        repo_id="someone/tissues",
        config=config,
        cards=CARDS,
        record={"stages": {"train_segmenter": run}},
        scores={("segmenter", "test"): SCORE},
        has_classifier=True,
    )
    return dataclasses.replace(known, **changes)


def test_every_method_preset_and_data_set_has_its_entry():
    configs = [path.stem for path in (BUNDLE / "configs").glob("*.json")]
    data_sets = {name.removeprefix("dataset_") for name in configs if name.startswith("dataset_")}
    assert CARDS["data_sets"].keys() == data_sets
    assert CARDS["methods"].keys() == {name.removeprefix("method_") for name in configs if name.startswith("method_")}
    assert all(entry["terms"] and entry["source"] for entry in CARDS["data_sets"].values())


@pytest.mark.parametrize("method", ["esfan", "ibdr", "sshr"])
def test_the_card_has_the_zoos_sections_and_no_blanks(method):
    text = text_card(facts(method))
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS
    assert "$" not in text.replace("'$None'", "") and "None of the authors' weights are redistributed" in text
    assert f"# Tissue segmentation from image-level labels ({method.upper()})" == text.splitlines()[0]
    for words in (
        "not for diagnosis",
        "independent implementation",
        "stain",
        "magnification",
        "only the tissues above",
    ):
        assert words in text


def test_the_first_lines_say_what_the_weights_learnt_from():
    start = text_card(facts(dataset="demo")).splitlines()[2]
    assert start.startswith("> These weights are a demonstration. They were trained on synthetic images")
    assert text_card(facts()).splitlines()[2].endswith("were trained on GlaS (Warwick-QU).")


def test_performance_is_the_runs_with_its_protocol():
    text = text_card(facts())
    assert "| segmentation network | test | 7 | 0.812 | 0.900 | gland 0.750, rest – |" in text
    assert "Protocol `published`" in text and "(seed 3, PyTorch 2.14.1)" in text


def test_a_file_of_weights_has_no_performance_and_an_unknown_origin():
    text = text_card(facts(record={}, scores={}, has_classifier=False))
    assert "No performance was measured" in text and "| segmentation network" not in text
    assert "None of the authors' weights" not in text and "whose origin and terms" in text
    assert "of the classifier: not part of this bundle" in text
    assert "model-index" not in hub_card(facts(record={}, scores={}))


def test_machines_read_licence_and_scores_from_the_hubs_card():
    card = ModelCard(hub_card(facts()))
    assert card.data.license == "apache-2.0" and card.data.library_name == "monai"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("mean_iou", 0.8124, "test")
    assert card.text.strip() == text_card(facts()).strip()


def test_terms_of_the_training_data_come_first_and_of_all_others_after():
    text = licences(facts())
    assert text.startswith("Training data of these weights: GlaS (Warwick-QU)\n")
    assert text.index("commercial uses are not allowed") < text.index("Other data sets")
    assert all(text.count(f"{entry['title']}\n") == 1 for entry in CARDS["data_sets"].values())


def test_a_data_set_of_ones_own_asks_for_its_terms():
    known = facts()
    mine = facts(config=known.config | {"dataset_name": "mine"})
    assert "Whoever shares these weights should state the data set's terms here" in licences(mine)


def test_scores_are_read_by_stage_and_split(tmp_path):
    (tmp_path / "scores").mkdir()
    content = {"images": 4, "protocols": {"published": {"mean_iou": 0.5}, "with_background": {"mean_iou": 0.9}}}
    (tmp_path / "scores" / "classifier_val.json").write_text(json.dumps(content))
    assert scores_of(tmp_path) == {("classifier", "val"): {"mean_iou": 0.5, "images": 4}}
    assert scores_of(None) == {}


def test_the_citation_file_is_yaml_that_names_the_papers():
    content = yaml.safe_load((BUNDLE.parent / "CITATION.cff").read_text())
    assert content["cff-version"] == "1.2.0" and content["license"] == "Apache-2.0"
    assert [reference["abbreviation"] for reference in content["references"]] == ["ESFAN", "IBDR", "SSHR"]
    assert all("Weakly Supervised" in reference["title"] for reference in content["references"])
    assert all(reference["authors"] and reference["type"] for reference in content["references"])
    assert "independent implementation" in content["message"] and "no authors' weights" in content["message"]
