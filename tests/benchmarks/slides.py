"""Measure the whole-slide engine on synthetic slides, half of them tissue.

python tests/benchmarks/slides.py memory          peak memory and disk, slides of 8192 to 65536 px
python tests/benchmarks/slides.py throughput      tiles per second, as a share of the bare network's
"""

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bundle"), str(ROOT / "tests"), str(Path(__file__).parent)]

import fire  # noqa: E402
import torch  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from synthetic_slide import write_large_slide  # noqa: E402
from timing import synchronize  # noqa: E402

from scripts.slides.segmenting.run import segment_slides  # noqa: E402


def configured(*overlays, **settings):
    """The engine of inference_slides.json, with random weights, on the CPU unless ``device`` says otherwise."""
    parser = ConfigParser()
    with contextlib.chdir(ROOT / "bundle"):
        parser.read_config(["configs/inference.json", *overlays, "configs/inference_slides.json"])
        for name, value in {"device": "$torch.device('cpu')", "trained_segmenter": "@network_def", **settings}.items():
            parser[name] = value
        torch.manual_seed(0)
        return parser.get_parsed_content("engine")


def pink_or_purple():
    """One 1 x 1 convolution that tells the two colours of the synthetic tissue."""
    network = torch.nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[:2, 0, 0, 0] = torch.tensor([6.0, -6.0])  # of red
        network.bias.copy_(torch.tensor([-4.2, 4.2, 0, 0]))
    return network


def resident_gb(field):
    """Resident memory of this process in 10^9 bytes: ``VmRSS`` now, ``VmHWM`` at most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


def peak(slide, output_dir, budget_gb=2.0):
    """Segment a slide with a network of one 1 x 1 convolution; print memory, disk and time as JSON."""
    engine = configured(trained_segmenter=pink_or_purple(), budget_gb=budget_gb)
    engine.segmenter.probabilities(torch.zeros(16, 224, 224, 3, dtype=torch.uint8).numpy())
    before, start = resident_gb("VmRSS"), time.perf_counter()
    segment_slides(engine, slide, output_dir)
    seconds, (folder,) = time.perf_counter() - start, Path(output_dir).iterdir()
    record = json.loads((folder / "record.json").read_text())
    height, width = record["settings"]["size_px"]
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    print(
        json.dumps(
            {
                "before": before,
                "peak": resident_gb("VmHWM"),
                "bytes_per_pixel": (sizes["classes.ome.tif"] + sizes["entropy.ome.tif"]) / (height * width),
                "geojson_gb": sizes["annotations.geojson"] / 1e9,
                "tiles": record["tiles"],
                "seconds": seconds,
            }
        )
    )


def memory(sides=(8192, 32768, 65536), budget_gb=2.0):
    """Peak memory and disk with a tiny network, each slide in a process of its own."""
    peaks = []
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            write_large_slide(f"{folder}/slide.tif", side)
            command = [sys.executable, __file__, "peak", f"{folder}/slide.tif", f"{folder}/out", str(budget_gb)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        peaks.append(found["peak"] - found["before"])
        print(
            f"{side:>6} px: {found['before']:.2f} GB before, at most {found['peak']:.2f} GB, difference "
            f"{peaks[-1]:.2f} GB; maps {found['bytes_per_pixel']:.2f} bytes per pixel, annotations "
            f"{found['geojson_gb']:.2f} GB; {found['tiles']} tiles in {found['seconds']:.0f} s",
            flush=True,
        )
    print(f"from {sides[-2]} to {sides[-1]} px the difference grows by {peaks[-1] / peaks[-2] - 1:.1%}")


def timed(work, device="cpu"):
    """Seconds, and seconds of the processors, which other programs disturb less."""
    synchronize(device)
    start, used = time.perf_counter(), time.process_time()
    work()
    synchronize(device)
    return time.perf_counter() - start, time.process_time() - used


def share(name, overlays, side, turns, device="cpu", **settings):
    """Tiles per second of the engine, from the file to the results, and of its network alone on the same tiles.

    Returns:
        The number of tiles, and medians of the tiles per second of the engine and of the share that this is of the
        network's.
    """
    engine = configured(*overlays, device=f"$torch.device('{device}')", **settings)
    network, batch_size, seen = engine.segmenter.network, engine.segmenter.batch_size, []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_large_slide(f"{folder}/slide.tif", side)
        turn = itertools.count()

        def ours():
            segment_slides(engine, f"{folder}/slide.tif", f"{folder}/out{next(turn)}")

        hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
        ours()  # warm up
        hook.remove()
        tiles = torch.cat(seen)

        def bare():
            for batch in tiles.split(batch_size):
                network(batch)

        bare()  # warm up: its batches have other sizes
        ratios, speeds = [], []
        for _ in range(turns):
            whole, alone = timed(ours, device), timed(bare, device)
            ratios.append([part / all_ for part, all_ in zip(alone, whole)])
            speeds.append(len(tiles) / whole[0])
            print(f"    {speeds[-1]:.2f} tiles/s, network {len(tiles) / alone[0]:.2f} tiles/s", flush=True)
    by_clock, by_processor = (statistics.median(column) for column in zip(*ratios))
    print(
        f"{name}: {len(tiles)} tiles of {tiles.shape[-1]} px, batches of {batch_size}: {by_clock:.1%} of the network's "
        f"tiles per second, {by_processor:.1%} of its tiles per second of the processors",
        flush=True,
    )
    return len(tiles), statistics.median(speeds), by_clock


ROWS = {
    "lite": (["configs/lite.json"], 1024, 5, {}),
    "lite_unmirrored": (["configs/lite.json"], 2048, 5, {"mirror_averaging": False}),
    "paper": ([], 640, 3, {}),
}


def throughput(*rows):
    """Compare the engine with its own network, in turn: all rows, or some of lite, lite_unmirrored and paper."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in rows or ROWS:
        overlays, side, turns, settings = ROWS[name]
        share(name, overlays, side, turns, **settings)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    fire.Fire({"memory": memory, "peak": peak, "throughput": throughput})
