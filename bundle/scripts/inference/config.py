"""The configs that a finished run uses to segment new images."""

from collections.abc import Sequence
from pathlib import Path

from ignite import distributed
from monai.bundle import ConfigParser

from ..data.classes import Classes
from ..files.atomic import write_json
from ..files.foreign_files import read_json
from ..runs.run_folder import untrained
from ..runs.settings import references, settings_used
from ..runs.stages import stage_config

STRENGTHS = "cam_segmenter#class_strengths"  # a setting that training patches are measured for


@distributed.one_rank_only()
def write_inference_config(
    output_dir: str | Path,
    classes: Classes,
    patch_size: Sequence[int],
    stage: str,
    class_strengths: Sequence[Sequence[float]] | None = None,
) -> None:
    """Write the ``inference.json`` and ``metadata.json`` of a run's network.

    Args:
        output_dir: the run folder. Keys listed in ``of_the_training`` of ``inference.json``, and all to which these
            refer, are taken from its ``train.json``.
        classes: names and values; one class per output channel of the network.
        patch_size: height and width of the training patches in pixels.
        stage: the stage that made the network.
        class_strengths: those of the CAMs, (levels, K), where these are the network.
    """
    configs = Path(output_dir) / "configs"
    train = ConfigParser(stage_config(read_json(configs / "train.json"), stage))
    train[STRENGTHS] = class_strengths
    inference = read_json(untrained("inference.json"))
    own = {key: train[key] for key in inference["of_the_training"] if key in train}
    inference |= own | {"patch_size": list(patch_size)}
    known = {key for key, value in inference.items() if value}
    parser = ConfigParser(inference)
    for key, value in settings_used(train.get(), references(own), known).items():
        parser[key] = value
    write_json(configs / "inference.json", parser.get())
    metadata = read_json(untrained("metadata.json"))
    channel_def = {str(value): name for value, name in enumerate(classes.value_names)}
    metadata["pred_classes"] = ", ".join(f"{value} {name}" for value, name in channel_def.items())
    network_data = metadata["network_data_format"]
    network_data["outputs"]["pred"] |= {"num_channels": len(classes), "channel_def": channel_def}
    for tensor in (network_data["inputs"]["image"], network_data["outputs"]["pred"]):
        tensor["spatial_shape"] = list(patch_size)
    write_json(configs / "metadata.json", metadata)
