"""CAMs, pseudo masks and inference: images or tiles per second, and as a share of the bare network's own."""

from collections.abc import Iterator

import run
import slides as slide_benchmark
import torch
from table import Conditions, Row
from timing import best_precision


def masks(conditions: Conditions) -> Iterator[Row]:
    """CAMs and masks of a batch, and the pseudo masks of a folder, of both methods."""
    device, size, overlays = conditions.device, conditions.of(224, 64), conditions.overlays
    batch, images, repeats = conditions.of(32, 2), conditions.of(64, 4), conditions.of(3, 1)
    for method in run.METHODS:
        found = run.cams(method, device, repeats, batch, size, overlays)
        precision = best_precision(device)
        mine, theirs, agreement = found[precision]
        yield Row(
            f"{method}, CAMs and masks in memory, {batch} × {size} px ({precision})",
            f"{batch / mine:.0f} images/s; float32 {batch / found['float32'][0]:.0f}",
            f"plain, one by one, {batch / theirs:.0f} images/s: {theirs / mine:.1f} ×; {agreement:.2%} of pixels equal",
            numbers={name: dict(zip(("seconds", "plain", "equal"), values)) for name, values in found.items()},
        )
        mine, network = run.pseudo_masks(method, device, images, size, repeats, conditions.of(32, 2), overlays)
        yield shared(f"{method}, pseudo masks of a folder of {images} patches ({precision})", images, mine, network)
        if device == "cuda":
            torch.cuda.empty_cache()


def shared(what: str, number: int, mine: float, network: float, unit: str = "images/s") -> Row:
    """A row of a work that goes over images, beside its network alone."""
    return Row(
        what,
        f"{number / mine:.0f} {unit}",
        f"network alone {number / network:.0f} {unit}: {network / mine:.1%} of that",
        numbers={"per_second": number / mine, "network_per_second": number / network, "share": network / mine},
    )


def images(conditions: Conditions) -> Iterator[Row]:
    """A folder of images by ``inference.json``: reading them, masks and overlays written."""
    for name, overlays, number, size in (
        ("lite", ["configs/lite.json"], 384, 128),
        ("paper", conditions.overlays, 128, 224),
    ):
        number, size = conditions.of(number, 4), conditions.of(size, 64)
        mine, network = run.inference(overlays, name, number, conditions.device, size, conditions.of(3, 1))
        yield shared(f"{name}, inference of a folder of {number} images of {size} px", number, mine, network)


def slides(conditions: Conditions) -> Iterator[Row]:
    """A synthetic slide, half of it tissue, by ``inference_slides.json``."""
    lite = ["configs/lite.json"]
    for name, overlays, side, settings in (
        ("lite", lite, 4096, {"mirror_averaging": False}),
        ("lite, averaged over mirror images", lite, 4096, {"mirror_averaging": True}),
        ("paper", conditions.overlays, 3072, {"mirror_averaging": False}),
    ):
        side = conditions.of(side, 512)
        tiles, speed, part = slide_benchmark.share(
            name, overlays, side, conditions.of(3, 1), conditions.device, **settings
        )
        yield Row(
            f"{name}, a slide of {side} × {side} px, {tiles} tiles",
            f"{speed:.1f} tiles/s",
            f"network alone {speed / part:.1f} tiles/s: {part:.1%} of that",
            numbers={"tiles": tiles, "per_second": speed, "share": part},
        )
