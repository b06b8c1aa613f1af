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


@distributed.one_rank_only()
def write_inference_config(output_dir: str | Path, classes: Classes, patch_size: Sequence[int], stage: str) -> None:
    """Write the ``inference.json`` and ``metadata.json`` of a run's network.

    Args:
        output_dir: the run folder. Keys listed in ``of_the_training`` of ``inference.json``, and all others to which
            the network's definition refers, are taken from its ``train.json``.
        classes: names and values; one class per output channel of the network.
        patch_size: height and width of the training patches in pixels.
        stage: the stage that made the network.
    """
    configs = Path(output_dir) / "configs"
    train = stage_config(read_json(configs / "train.json"), stage)
    inference = read_json(untrained("inference.json"))
    inference |= {key: train[key] for key in inference["of_the_training"] if key in train}
    inference["patch_size"] = list(patch_size)
    parser, known = ConfigParser(inference), {key for key, value in inference.items() if value}
    for key, value in settings_used(train, references(train["network_def"]), known).items():
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
