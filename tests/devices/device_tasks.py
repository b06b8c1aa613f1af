"""What tests ask of the device's process besides runs of the bundle."""

from collections import Counter
from pathlib import Path
from unittest import mock

import monai.bundle
import numpy as np
from ignite.engine import Events
from monai.bundle import ConfigParser
from pretend_device import NAME, waits

DEVICE = f"$torch.device('{NAME}:0')"


def score_with_results_on_the_device(results, config_file, **settings):
    """Score a segmentation network again while its ``results``, ``"masks"`` or ``"matrices"``, stay on the device."""
    from scripts.data.transforms import LargestChanneld
    from scripts.evaluation import scoring

    def masks_on_the_device(self, data, own=LargestChanneld.__call__):
        item = own(self, data)
        return {**item, **{key: item[key].to(NAME) for key in self.keys}}

    def matrix_on_the_device(*args, own=scoring.confusion_matrix):
        return own(*args).to(NAME)

    patches = {
        "masks": mock.patch.object(LargestChanneld, "__call__", masks_on_the_device),
        "matrices": mock.patch.object(scoring, "confusion_matrix", matrix_on_the_device),
    }
    with patches[results]:
        monai.bundle.run(run_id="run", config_file=config_file, device=DEVICE, **settings)


def waits_of_steps(stage, config_file, steps=3, **settings):
    """Count the waits in the first steps of a stage's trainer, handlers included.

    Args:
        stage: its name in the configs.
        config_file: the configs.
        steps: number of steps.
        settings: overrides of the configs.

    Returns:
        ``steps``, how many were done, and ``waits``, for each kind of wait a line with its number, operation and place.
    """
    from scripts.runs.stages import stage_config

    parser = ConfigParser()
    parser.read_config(config_file)
    parser.update({"device": DEVICE, **settings})
    parser = ConfigParser(stage_config(parser.get(), stage))
    parser.get_parsed_content("initialize")
    engine = parser.get_parsed_content("train#trainer")
    found, step = [], {}

    def begin(engine):
        step["waits"] = waits()
        step["found"] = step["waits"].__enter__()

    def end(engine):
        step["waits"].__exit__(None, None, None)
        found.extend(step["found"])
        if engine.state.iteration == steps:
            engine.terminate()

    engine.add_event_handler(Events.GET_BATCH_COMPLETED, begin)  # before all handlers of a step
    engine.add_event_handler(Events.ITERATION_COMPLETED, end)  # after them
    engine.run()
    lines = [f"{count} x {wait.operation} at {wait.place}" for wait, count in Counter(found).items()]
    return {"steps": engine.state.iteration, "waits": lines}


def waits_of_pseudo_masks(config_file, **settings):
    """Count the waits while masks are written, but for those of the threads that write; a line for each kind."""
    parser = ConfigParser()
    parser.read_config(config_file)
    parser.update({"device": DEVICE, **settings})
    parser["pseudo_masks#write"] |= {"_mode_": "callable"}
    write = parser.get_parsed_content("pseudo_masks#write")
    with waits() as found:
        write()
    return [f"{count} x {wait.operation} at {wait.place}" for wait, count in Counter(found).items()]


def segment_as_the_label_app(run, image, path):
    """Write what the MONAI Label app's network says of an image file, on the device, to an ``.npz`` file."""
    from scripts.label_app.server.model import ModelStore
    from scripts.label_app.server.options import Options

    result = ModelStore(Options(bundle=Path(run), device=f"{NAME}:0")).get().predict(image)
    np.savez(path, mask=result.mask, entropy=result.entropy)
