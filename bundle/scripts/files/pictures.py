"""Masks and figures as PNG files: palette masks, mask overlays, heat maps, panels and confusion matrices."""

import textwrap
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation
from skimage.segmentation import find_boundaries

from ..errors import BundleError
from .atomic import atomic_path

Palette = Sequence[Sequence[int]]  # an RGB colour, 0..255, per mask value
IGNORED = 255  # value, in our masks, of pixels that take no part in losses and scores
GREY = [128, 128, 128]  # their colour
GAP_PX, LINE_PX = 6, 22  # gap between images on a sheet; height of a line of text


def write_png(path: str | Path, picture: Image.Image) -> None:
    """Write ``picture`` atomically as PNG."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", compress_type=zlib.Z_RLE)  # same size as the default in half the time


def palette_of(mask: np.ndarray, palette: Palette) -> Palette:
    """``palette``, extended up to grey for ``IGNORED`` if the mask has ignored pixels."""
    if len(palette) > IGNORED or not (mask == IGNORED).any():
        return palette
    return [*map(list, palette), *[GREY] * (IGNORED + 1 - len(palette))]


def mask_picture(mask: np.ndarray, palette: Palette) -> Image.Image:
    """Convert ``mask``, (H, W) integers, to a palette image whose pixel values are the mask values.

    Raises:
        BundleError: if a value other than ``IGNORED`` has no colour.
    """
    given, palette = palette, palette_of(mask, palette)
    values = mask[mask != IGNORED] if palette is not given else mask
    if values.size and not 0 <= values.min() <= values.max() < len(given):
        raise BundleError(
            f"`mask` must have values in 0..{len(given) - 1}, one per colour, got {values.min()}..{values.max()}."
        )
    picture = Image.fromarray(mask.astype(np.uint8), mode="L")
    picture.putpalette(np.asarray(palette, dtype=np.uint8).tobytes())  # turns the mode into "P"
    return picture


def write_mask(path: str | Path, mask: np.ndarray, palette: Palette) -> None:
    """Write ``mask``, (H, W) integers, as a palette PNG (see ``mask_picture``)."""
    write_png(path, mask_picture(mask, palette))


def overlay(image: np.ndarray, mask: np.ndarray, palette: Palette, opacity: float = 0.5) -> Image.Image:
    """Blend the colours of ``mask``, (H, W), over ``image``, (H, W, 3) uint8; value 0 stays transparent."""
    palette = palette_of(mask, palette)
    weight = np.full((len(palette), 1, 1), opacity)
    weight[0] = 0
    mixed = (1 - weight) * np.arange(256) + weight * np.asarray(palette)[..., None]  # (V, 3, 256), for each byte
    table, row = mixed.round().astype(np.uint8), 256 * mask.astype(np.intp)
    return Image.fromarray(np.stack([table[:, c].ravel()[row + image[..., c]] for c in range(3)], axis=-1))


def outlined(image: np.ndarray, mask: np.ndarray, palette: Palette) -> Image.Image:
    """Tint and outline the regions of ``mask``, (H, W), in ``image``, (H, W, 3) uint8; value 0 stays transparent."""
    palette = palette_of(mask, palette)
    picture = np.array(overlay(image, mask, palette, opacity=0.25))
    edges = binary_dilation(find_boundaries(mask, mode="inner")) & (mask > 0)
    picture[edges] = np.asarray(palette, dtype=np.uint8)[mask[edges]]
    return Image.fromarray(picture)


def uint8_image(image: torch.Tensor) -> np.ndarray:
    """Convert ``image``, (3, H, W) float in [0, 1], to (H, W, 3) uint8."""
    return (image.detach().cpu().numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """The colours from blue over green to red ("jet"), (..., 3) in 0..255, of values in [0, 1], (...)."""
    return 255 * np.clip(1.5 - np.abs(4 * heat[..., None] - np.array([3.0, 2.0, 1.0])), 0, 1)


def heat_map(image: np.ndarray, scores: np.ndarray) -> Image.Image:
    """Blend a heat map of ``scores``, (H, W) float clipped to [0, 1], over ``image``, (H, W, 3) uint8."""
    heat = np.clip(np.nan_to_num(scores, neginf=0.0), 0, 1)
    return Image.fromarray((0.5 * image + 0.5 * heat_colours(heat)).round().astype(np.uint8))


def heat_legend(count: int) -> list[tuple[str, list[int]]]:
    """The value and colour of ``count`` equally spaced values in [0, 1] of a heat map."""
    values = np.linspace(0, 1, count)
    colours = heat_colours(values).round().astype(int).tolist()
    return [(f"{value:.2g}", colour) for value, colour in zip(values, colours, strict=True)]


def panels(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    legend: Sequence[tuple[str, Sequence[int]]] = (),
    height: int = 224,
) -> Image.Image:
    """Arrange rows of images, scaled to ``height`` pixels, under column ``titles``.

    The ``legend`` below the images lists names, each after a swatch of its colour.
    """
    gap, header = GAP_PX, LINE_PX
    scaled = [
        [p.convert("RGB").resize((max(1, round(p.width * height / p.height)), height)) for p in row] for row in rows
    ]
    widths = [max(row[column].width for row in scaled) for column in range(len(titles))]
    size = (sum(widths) + gap * (len(widths) + 1), header + (height + gap) * len(scaled))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    left = gap
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        draw.text((left, 3), title, fill="black", font=font)
        for index, row in enumerate(scaled):
            sheet.paste(row[column], (left, header + index * (height + gap)))
        left += width + gap
    return with_legend(sheet, legend)


def with_legend(picture: Image.Image, legend: Sequence[tuple[str, Sequence[int]]]) -> Image.Image:
    """Add the names in ``legend``, each after a swatch of its colour, in as many lines as needed below ``picture``."""
    font, places, left, line = ImageFont.load_default(size=14), [], GAP_PX, 0
    widths = [36 + round(font.getlength(name)) for name, _ in legend]
    across = max([picture.width, *(GAP_PX + width for width in widths)])
    for width in widths:
        if left > GAP_PX and left + width > across:
            left, line = GAP_PX, line + 1
        places.append((left, picture.height + line * LINE_PX))
        left += width
    sheet = Image.new("RGB", (across, picture.height + LINE_PX * (line + 1) * bool(legend)), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for (name, colour), (left, top) in zip(legend, places, strict=True):
        draw.rectangle((left, top + 3, left + 14, top + 15), fill=tuple(colour), outline="gray")
        draw.text((left + 20, top), name, fill="black", font=font)
    return sheet


def confusion_picture(confusion: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix, each row normalised to fractions.

    Args:
        confusion: pixel counts (T, V); rows are the ground truth (the last T of V classes), columns the prediction.
        names: names of the V classes.
    """
    cell, header, font = 96, 84, ImageFont.load_default(size=14)
    wrapped = ["\n".join(textwrap.wrap(name, 12)[:3]) for name in names]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    picture = Image.new("RGB", (cell * (1 + len(names)), header + cell * len(confusion)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((4, 4), "rows: ground truth, columns: prediction, as fractions of each row", fill="black", font=font)
    for column, name in enumerate(wrapped):
        draw.text((cell + column * cell + 4, 30), name, fill="black", font=font)
    for row, name in enumerate(wrapped[len(names) - len(confusion) :]):
        top = header + row * cell
        draw.text((4, top + cell // 2 - 8 * (1 + name.count("\n"))), name, fill="black", font=font)
        for column, share in enumerate(shares[row]):
            left, shade = cell + column * cell, round(255 * (1 - share))
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=(shade, shade, 255))
            colour = "white" if share > 0.5 else "black"
            draw.text((left + cell // 2 - 18, top + cell // 2 - 8), f"{share:.3f}", fill=colour, font=font)
    return picture
