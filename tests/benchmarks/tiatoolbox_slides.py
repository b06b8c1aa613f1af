"""The slide engine beside TIAToolbox's SemanticSegmentor: the same slide, network, tiles, steps and batch size.

In an environment of its own, since TIAToolbox asks for another PyTorch (`pip install tiatoolbox '.[lite,test]'`):

    python tests/benchmarks/tiatoolbox_slides.py compare SLIDE --segmenter_path RUN/models/model.pt \
        --overlays configs/lite.json,configs/dataset_demo.json

Each runs in a process of its own, with `mirror_averaging` off, and reads the slide's own micrometres per pixel.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fire
import numpy as np
import tifffile
import torch
from slides import configured, resident_gb, segment_slides


def engine_of(segmenter_path, overlays):
    """The engine of inference_slides.json with trained weights."""
    trained = {
        "_target_": "scripts.weights.state_dicts.load_weights",
        "network": "@network_def",
        "path": segmenter_path,
    }
    overlays = overlays.split(",") if isinstance(overlays, str) else overlays
    return configured(*overlays, trained_segmenter=trained, mirror_averaging=False)


def ours(slide, segmenter_path, overlays, folder):
    """Class map of the engine, with 0 where there is no class; seconds and peak memory as JSON."""
    engine, start = engine_of(segmenter_path, overlays), time.perf_counter()
    segment_slides(engine, slide, f"{folder}/ours")
    seconds = time.perf_counter() - start
    (path,) = Path(folder, "ours").glob("*/classes.ome.tif")
    np.save(f"{folder}/ours.npy", tifffile.imread(path))
    print(json.dumps({"seconds": seconds, "peak": resident_gb("VmHWM")}))


def theirs(slide, segmenter_path, overlays, folder):
    """The same of TIAToolbox, which writes the class map as Zarr and nothing else."""
    import zarr
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
    from tiatoolbox.models.models_abc import ModelABC

    class Wrapped(ModelABC):
        """Our network, for their engine."""

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, image):
            return self.network(image)

        @staticmethod
        def infer_batch(model, batch_data, *, device):
            with torch.inference_mode():
                image = batch_data.to(device).permute(0, 3, 1, 2) / 255
                return model(image).softmax(dim=1).permute(0, 2, 3, 1).cpu().numpy()

        @staticmethod
        def postproc(image):
            return image.argmax(axis=-1)

    engine = engine_of(segmenter_path, overlays)
    resolution, side = [{"units": "mpp", "resolution": engine.model_mpp}], [engine.tile_px] * 2
    config = IOSegmentorConfig(
        input_resolutions=resolution,
        output_resolutions=resolution,
        save_resolution=resolution[0],
        patch_input_shape=side,
        patch_output_shape=side,
        stride_shape=[engine.step_px] * 2,
    )
    wrapped, start = Wrapped(engine.segmenter.network), time.perf_counter()
    segmentor = SemanticSegmentor(wrapped, batch_size=engine.segmenter.batch_size, device="cpu", verbose=False)
    segmentor.run(
        [Path(slide)],
        patch_mode=False,
        ioconfig=config,
        save_dir=Path(folder, "theirs"),
        output_type="zarr",
        auto_get_mask=True,
    )
    seconds = time.perf_counter() - start
    (path,) = Path(folder, "theirs").glob("*.zarr")
    found = np.asarray(zarr.open(path, mode="r")["predictions"])
    np.save(f"{folder}/theirs.npy", np.asarray(engine.segmenter.classes.segmenter_values)[found])
    print(json.dumps({"seconds": seconds, "peak": resident_gb("VmHWM")}))


def compare(slide, segmenter_path, overlays="configs/lite.json,configs/dataset_demo.json"):
    """Print time and peak memory of both, and on how many of our class map's pixels of a class they agree."""
    slide, segmenter_path = os.path.abspath(slide), os.path.abspath(segmenter_path)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ours", "theirs"):
            command = [sys.executable, __file__, name, slide, segmenter_path, overlays, folder]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(result.stdout.splitlines()[-1])
            print(f"{name}: {found['seconds']:.1f} s, at most {found['peak']:.2f} GB", flush=True)
        a, b = (np.load(f"{folder}/{name}.npy") for name in ("ours", "theirs"))
    print(f"class maps of {a.shape} and {b.shape} pixels")
    height, width = np.minimum(a.shape, b.shape)
    a, b = a[:height, :width], b[:height, :width]
    print(f"the same class in {(a == b)[a > 0].mean():.3%} of {(a > 0).sum()} pixels")


if __name__ == "__main__":
    fire.Fire({"compare": compare, "ours": ours, "theirs": theirs})
