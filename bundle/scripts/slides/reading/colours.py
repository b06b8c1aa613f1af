"""The colours of a TIFF's samples as RGB, for every photometric interpretation that shows a stain as a viewer does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tifffile import TiffPage

from ...errors import BundleError
from .description import WHITE

JPEG = (6, 7, 34892, 33007)  # compressions whose decoder turns YCbCr into RGB
DECODED_TO_RGB = (*JPEG, 50001, 50002, 52546)  # and WebP, JPEG XL
APERIO_YCBCR = 33003  # JPEG 2000 without a word on its colours
LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # keep YCbCr as it is
NAMES = {0: "white is zero", 1: "greyscale", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
SAMPLES = {"white is zero": 1, "greyscale": 1, "RGB": 3, "palette": 1, "CMYK": 4, "YCbCr": 3}
REMEDY = "save it as 8-bit RGB"


@dataclass(frozen=True)
class Colours:
    """How the samples of a TIFF page become RGB.

    Args:
        model: the photometric interpretation, one of ``SAMPLES``.
        bits: bits per sample, 1 to 8.
        order: positions of red, green and blue among the samples of three greyscale planes; ``None`` for others.
        alpha: position of the alpha sample; ``None`` if there is none.
        premultiplied: whether the colours are already multiplied by alpha.
        decoded: whether the decoder already turns YCbCr into RGB.
        coefficients: luma of red, green and blue, for YCbCr.
        colormap: RGB of each value, (V, 3) uint8, for palettes.
        background: RGB under transparent pixels.
    """

    model: str
    bits: int = 8
    order: tuple[int, int, int] | None = None
    alpha: int | None = None
    premultiplied: bool = False
    decoded: bool = False
    coefficients: tuple[float, float, float] = (0.299, 0.587, 0.114)
    colormap: np.ndarray | None = None
    background: tuple[int, int, int] = WHITE

    @property
    def plain(self) -> bool:
        """Whether every reader shows these colours alike: RGB, or YCbCr in JPEG, without alpha."""
        unchanged = self.bits == 8 and self.alpha is None and self.order is None
        return unchanged and (self.model == "RGB" or self.decoded)

    def to_rgb(self, samples: np.ndarray) -> np.ndarray:
        """Convert ``samples``, (H, W, S) of up to 8 bits, to (H, W, 3) uint8."""
        rgb = self._opaque(samples)
        if self.alpha is None:
            return rgb
        alpha = samples[..., self.alpha : self.alpha + 1]
        return on_background(np.concatenate([rgb, alpha], axis=2), self.background, self.premultiplied)

    def _opaque(self, samples: np.ndarray) -> np.ndarray:
        if self.order is not None:
            return samples[..., list(self.order)]
        colours = samples[..., : SAMPLES[self.model]]
        if self.model == "palette":
            return self.colormap[colours[..., 0]]
        if self.model in ("greyscale", "white is zero"):
            grey = (colours.astype(np.uint16) * 255 // (2**self.bits - 1)).astype(np.uint8)
            return np.repeat(grey if self.model == "greyscale" else 255 - grey, 3, axis=2)
        if self.model == "CMYK":
            return np.asarray(Image.fromarray(np.ascontiguousarray(colours), mode="CMYK").convert("RGB"))
        if self.model == "YCbCr" and not self.decoded:
            return ycbcr_to_rgb(colours, self.coefficients)
        return colours


def colours_of(page: TiffPage, order: tuple[int, int, int] | None = None) -> Colours:
    """How a page's samples become RGB.

    Args:
        page: the page.
        order: positions of red, green and blue, if the colours are three greyscale planes.

    Raises:
        BundleError: if that is not known for sure; the message says what it has.
    """
    model, bits = NAMES.get(int(page.photometric)), page.bitspersample
    if model not in SAMPLES:
        raise BundleError(f"its colours must be RGB or convertible to it, got {model or page.photometric}; {REMEDY}.")
    if not isinstance(bits, int) or page.dtype is None or page.dtype.kind not in "ub" or bits > 8:
        raise BundleError(f"its samples must have 8 bits, got {bits} bits ({page.dtype}); {REMEDY}.")
    if model in ("RGB", "CMYK", "YCbCr") and bits < 8:
        raise BundleError(f"its samples must have 8 bits, got {bits} bits; {REMEDY}.")
    extra = [int(kind) for kind in page.extrasamples]
    alpha = next((page.samplesperpixel - len(extra) + at for at, kind in enumerate(extra) if kind in (1, 2)), None)
    if order is not None:
        return Colours("RGB", order=order)
    if page.samplesperpixel < SAMPLES[model] or (model in ("greyscale", "white is zero") and len(extra) > 1):
        raise BundleError(f"its colours must be RGB, got {page.samplesperpixel} {model} channels; {REMEDY}.")
    if model == "CMYK" and int(page.tags.valueof("InkSet", 1)) != 1:
        raise BundleError(f"its inks must be cyan, magenta, yellow and black, got others; {REMEDY}.")
    colormap = None
    if model == "palette":
        colormap = np.asarray(page.colormap)  # (3, V), of 16 bits, or of 8 by mistake
        colormap = (colormap.T >> 8 if colormap.max(initial=0) > 255 else colormap.T).astype(np.uint8)
    return Colours(
        model,
        bits,
        alpha=alpha,
        premultiplied=alpha is not None and extra[alpha - page.samplesperpixel] == 1,
        decoded=model == "YCbCr" and _decoded_to_rgb(page),
        coefficients=_rationals(page, "YCbCrCoefficients", Colours.coefficients),
        colormap=colormap,
    )


def _decoded_to_rgb(page: TiffPage) -> bool:
    """Whether tifffile turns a page's YCbCr into RGB.

    Raises:
        BundleError: if it does not, and the values may be others than YCbCr of full range.
    """
    if page.compression in DECODED_TO_RGB and page.planarconfig == 1:
        return True
    black_white = _rationals(page, "ReferenceBlackWhite", (0.0, 255.0, 128.0, 255.0, 128.0, 255.0))
    kept = page.compression in LOSSLESS and not page.is_subsampled and black_white[:2] == (0.0, 255.0)
    if not kept and page.compression != APERIO_YCBCR:
        raise BundleError(f"its YCbCr colours must be compressed as JPEG, or neither subsampled nor scaled; {REMEDY}.")
    return False


def _rationals(page: TiffPage, tag: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """The fractions in a tag."""
    stated = page.tags.valueof(tag, None)
    return default if stated is None else tuple(a / b for a, b in zip(stated[::2], stated[1::2], strict=True))


def ycbcr_to_rgb(samples: np.ndarray, luma: Sequence[float]) -> np.ndarray:
    """Convert full-range YCbCr, (H, W, 3) uint8, to RGB."""
    y, cb, cr = np.moveaxis(samples.astype(np.float32), 2, 0)
    red = y + (2 - 2 * luma[0]) * (cr - 128)
    blue = y + (2 - 2 * luma[2]) * (cb - 128)
    green = (y - luma[0] * red - luma[2] * blue) / luma[1]
    return np.stack([red, green, blue], axis=2).round().clip(0, 255).astype(np.uint8)


def on_background(pixels: np.ndarray, background: Sequence[int] = WHITE, premultiplied: bool = False) -> np.ndarray:
    """Blend ``pixels``, (H, W, 4) uint8, onto a colour, (H, W, 3) uint8: unscanned areas are transparent."""
    colours, alpha = pixels[..., :3], pixels[..., 3:].astype(np.int32)
    if alpha.min(initial=255) == 255:
        return colours
    under = np.asarray(background, dtype=np.int32)
    if premultiplied:
        return (colours + under * (255 - alpha) // 255).clip(0, 255).astype(np.uint8)
    return (under - (under - colours) * alpha // 255).astype(np.uint8)
