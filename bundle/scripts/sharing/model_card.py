"""An exported bundle's description: README for the Model Zoo, model card for the Hub, metadata and data terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from monai.bundle import ConfigParser

from ..data.classes import Classes
from ..files.foreign_files import read_json
from ..runs.run_folder import RunFolder
from ..runs.stages import stage_parser

SPLITS = ("val", "test")
OF_A_RUN = {
    "origin": "None of the authors' weights are redistributed: these weights were trained with this code.",
    "training": "`python -m monai.bundle run training --config_file configs/train.json` repeats their training.",
}
OF_A_FILE = {
    "origin": "The code comes without the authors' weights; these weights were provided as a file, whose origin and "
    "terms whoever shares them should state here.",
    "training": "How the weights were trained is unknown to the code: they were provided as a file.",
}
STAGES = {"classifier": "CAMs of the classifier", "segmenter": "segmentation network"}
WITHOUT_SECOND_STAGE = {"segmenter": STAGES["classifier"]}  # the CAMs are the network
PROTOCOL = "published"
TWO_STAGES = (
    "A classifier (stage 1) is trained on H&E patches with image-level labels; its class activation maps become pseudo "
    "masks, on which a segmentation network (stage 2) is trained."
)
ONE_STAGE = (
    "A classifier is trained on H&E patches with image-level labels; its class activation maps are the masks, without "
    "a second stage."
)
UNKNOWN_DATA = {
    "source": "A data set chosen by whoever trained these weights, who should describe it here.",
    "terms": "Whoever shares these weights should state the data set's terms here.",
}


@dataclass(frozen=True)
class Facts:
    """The known facts about an exported bundle.

    Args:
        name: the bundle's name.
        version: the bundle's version.
        repo_id: the Hub repository, ``OWNER/NAME``.
        config: its ``train.json``.
        cards: the descriptions of methods, presets and data sets in ``docs/cards.json``.
        record: the run's ``run.json``; empty for a weight file.
        scores: by stage and split, as returned by ``scores_of``.
        has_classifier: whether the stage-1 weights are included.
    """

    name: str
    version: str
    repo_id: str
    config: Mapping[str, Any]
    cards: Mapping[str, Any]
    record: Mapping[str, Any]
    scores: Mapping[tuple[str, str], Mapping[str, Any]]
    has_classifier: bool

    @property
    def method(self) -> Mapping[str, Any]:
        """The method's entry in the cards."""
        name = self.config["method_name"]
        return self.cards["methods"].get(name, {"title": name, "summary": f"The method {name}.", "references": []})

    @property
    def data(self) -> Mapping[str, Any]:
        """The training data's entry in the cards."""
        name = self.config["dataset_name"]
        return self.cards["data_sets"].get(name, {"title": name, **UNKNOWN_DATA})

    @property
    def first_line(self) -> str:
        """What readers must know first: the data the weights were trained on."""
        data_set = self.data["title"]
        return self.data.get("first_line", f"The weights in `models/model.pt` were trained on {data_set}.")

    def metadata(self) -> dict[str, Any]:
        """The entries of ``metadata.json`` that describe the bundle."""
        return {
            "name": f"Tissue segmentation in histopathology ({self.method['title']})",
            "description": f"{self.first_line} {self.method['summary']}",
            "authors": f"the contributors; an independent implementation of {self.method['title']}",
            "data_source": f"{self.data['title']}: {self.data['source']}",
            "eval_metrics": {
                f"{PROTOCOL}_mean_iou_{stage}_{split}": score["mean_iou"]
                for (stage, split), score in self.scores.items()
            },
            "references": list(self.method["references"]),
        }


def read_cards(path: str | Path) -> dict[str, Any]:
    """Read ``docs/cards.json``."""
    return read_json(path)


def scores_of(run: Path | None) -> dict[tuple[str, str], dict[str, Any]]:
    """A run's scores under the protocol ``published``, by stage and split, with ``images``; empty without a run."""
    if run is None:
        return {}
    scores = {}
    for stage in STAGES if RunFolder(run).has_second_stage else WITHOUT_SECOND_STAGE:
        for split in SPLITS:
            path = run / "scores" / f"{stage}_{split}.json"
            if path.is_file():
                content = read_json(path)
                scores[stage, split] = content["protocols"][PROTOCOL] | {"images": content["images"]}
    return scores


def performance(facts: Facts) -> str:
    """The section on performance: the run's own scores, or a statement that there are none."""
    if not facts.scores:
        return "No performance was measured for this bundle: the weights came without the run that trained them."
    lines = ["| what | split | images | mean IoU | mean Dice | IoU of each class |", "|---|---|---|---|---|---|"]
    names = STAGES if facts.config.get("second_stage", True) else WITHOUT_SECOND_STAGE
    for (stage, split), score in facts.scores.items():
        classes = ", ".join(f"{name} {_number(value['iou'])}" for name, value in score["classes"].items())
        means = f"{_number(score['mean_iou'])} | {_number(score['mean_dice'])}"
        lines.append(f"| {names[stage]} | {split} | {score['images']} | {means} | {classes} |")
    run = next(reversed(facts.record.get("stages", {}).values()), {})
    made = f"seed {run['seed']}, PyTorch {run['versions']['torch']}" if run else "seed not recorded"
    return (
        f"Protocol `{PROTOCOL}`: pixels of all images in one confusion matrix; pixels whose ground truth is background "
        f"are not scored. Scores of the run that trained these weights ({made}):\n\n" + "\n".join(lines)
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def text_card(facts: Facts) -> str:
    """``docs/README.md``, with the Model Zoo's sections."""
    config = facts.config
    mpp = config.get("model_mpp")
    two_stages = config.get("second_stage", True)
    trainings = {"classifier": "train_classifier"} | ({"segmentation network": "train_segmenter"} if two_stages else {})
    template = Template(Path(__file__).with_name("model_card.md").read_text(encoding="utf-8"))
    return template.substitute(
        title=f"Tissue segmentation from image-level labels ({facts.method['title']})",
        first_line=facts.first_line,
        method=facts.method["title"],
        stages=TWO_STAGES if two_stages else ONE_STAGE,
        summary=facts.method["summary"],
        networks=facts.cards["presets"].get(config["preset"], f"the preset `{config['preset']}`"),
        data_set=facts.data["title"],
        source=facts.data["source"],
        terms=facts.data["terms"],
        classes=", ".join(config["class_names"]),
        dataset=config["dataset_name"],
        values=", ".join(f"{value} {name}" for value, name in enumerate(Classes.of(config).value_names)),
        num_classes=len(config["class_names"]),
        patch=" x ".join(str(side) for side in config["patch_size"]["default"]),
        resolution="unknown micrometres" if mpp is None else f"{mpp} micrometres",
        trainings="; ".join(_training(name, stage_parser(config, stage)) for name, stage in trainings.items()),
        performance=performance(facts),
        stage_1="`models/classifier/model.pt`" if facts.has_classifier else "not part of this bundle",
        **(OF_A_RUN if facts.record else OF_A_FILE),
        references="\n".join(f"* {reference}" for reference in facts.method["references"]),
    )


def _training(name: str, parser: ConfigParser) -> str:
    epochs, batch_size = (parser.get_parsed_content(f"train#{key}") for key in ("epochs", "batch_size"))
    return f"{name}: {epochs} epochs, batch size {batch_size}"


def hub_card(facts: Facts) -> str:
    """``README.md`` for the Hugging Face Hub: the machine-readable metadata, then the text."""
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=facts.config["dataset_name"],
            dataset_name=facts.data["title"],
            dataset_split=split,
            metric_type="mean_iou",
            metric_name=f"mean IoU, protocol {PROTOCOL}",
            metric_value=round(score["mean_iou"], 4),
        )
        for (stage, split), score in facts.scores.items()
        if stage == "segmenter" and score["mean_iou"] is not None
    ]
    card = ModelCardData(
        license="apache-2.0",
        library_name="monai",
        pipeline_tag="image-segmentation",
        tags=["monai", "histopathology", "weakly-supervised", facts.config["method_name"], "not-for-diagnosis"],
        model_name=facts.name,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---\n\n{text_card(facts)}"


def licences(facts: Facts) -> str:
    """``docs/data_license.txt``: the terms of the training data, then those of every other data set with an overlay."""
    texts = [f"Training data of these weights: {_terms(facts.data)}"]
    others = (entry for entry in facts.cards["data_sets"].values() if entry != facts.data)
    texts.append("Other data sets for which this code has settings; none is part of this bundle:")
    texts += [_terms(entry) for entry in others]
    return "\n\n".join(texts) + "\n"


def _terms(entry: Mapping[str, Any]) -> str:
    return f"{entry['title']}\n{entry['source']}\nTerms: {entry['terms']}"
