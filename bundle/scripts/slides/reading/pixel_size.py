"""The pixel size that a slide's file states, from the places where formats keep it.

A place that states no size of a scan, such as a resolution for printers or a size in "pixels", is passed over.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tifffile import TiffFile, TiffPage, TiffPageSeries, xml2dict

from .description import PLAUSIBLE_MPP

Pair = tuple[float, float]  # (y, x)
UM_PER_INCH = 25_400.0
METRES = {  # the prefixes of OME's units
    **{"Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0},
    **{"d": -1, "c": -2, "m": -3, "µ": -6, "u": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24},
}
MICROMETRES = {f"{prefix}m": 10.0 ** (power + 6) for prefix, power in METRES.items()} | {
    "Å": 1e-4,
    "thou": UM_PER_INCH / 1000,
    "mil": UM_PER_INCH / 1000,
    "li": UM_PER_INCH / 12,  # a line is 1/12 of an inch
    "pt": UM_PER_INCH / 72,
    "in": UM_PER_INCH,
    '"': UM_PER_INCH,
    "ft": UM_PER_INCH * 12,
    "yd": UM_PER_INCH * 36,
    "mi": UM_PER_INCH * 63_360,
}
WORDS = {  # spelled out, as ImageJ and others write units, in any case and number
    **dict.fromkeys(("micron", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("meter", "metre"), 1e6),
    **dict.fromkeys(("nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("picometer", "picometre"), 1e-6),
    **dict.fromkeys(("angstrom", "ångström"), 1e-4),
    **{"inch": UM_PER_INCH, "inche": UM_PER_INCH, "foot": UM_PER_INCH * 12, "feet": UM_PER_INCH * 12},
    "point": UM_PER_INCH / 72,
}


def micrometres(unit: str | None) -> float | None:
    """Micrometres per ``unit``; ``None`` if it is no unit of length, such as ``"pixel"``."""
    text = re.sub(r"\\u00b5", "µ", str(unit or ""), flags=re.IGNORECASE)  # as ImageJ writes it
    text = unicodedata.normalize("NFKC", text).replace("\N{GREEK SMALL LETTER MU}", "µ").strip()
    word = text.lower().removesuffix("s")
    return MICROMETRES.get(text, WORDS.get(word, {"um": 1.0, "µm": 1.0}.get(text.lower())))


def number(value: Any) -> float | None:
    """A positive, finite number, with a decimal point or comma; ``None`` for anything else."""
    try:
        found = float(str(value).strip().replace(",", "."))
    except ValueError:
        return None
    return found if 0 < found < math.inf else None


def plausible(pair: tuple[float | None, float | None] | None) -> Pair | None:
    """The size, (y, x), if it can be that of a scan; one side stands for a missing one."""
    if pair is None or pair == (None, None):
        return None
    y, x = (side if side is not None else other for side, other in (pair, pair[::-1]))
    return (y, x) if all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in (y, x)) else None


def first_plausible(places: Mapping[str, Callable[[], Any]]) -> tuple[Pair | None, str | None]:
    """The first plausible size and the name of its place; a damaged place states none."""
    for source, ask in places.items():
        try:
            size = plausible(ask())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError):
            continue
        if size is not None:
            return size, source
    return None, None


def tiff_pixel_size(tiff: TiffFile, series: TiffPageSeries) -> tuple[Pair | None, str | None]:
    """Micrometres per pixel of a TIFF's series, (y, x), and where they are from."""
    page = series.keyframe
    return first_plausible(
        {
            "OME-XML": lambda: ome_size(ome_pixels(tiff, series)),
            "ImageJ": lambda: imagej_size(tiff, page),
            "Aperio": lambda: aperio_size(page.description),
            "TIFF resolution": lambda: resolution_size(page),
        }
    )


def ome_images(tiff: TiffFile) -> Iterator[dict[str, Any]]:
    """The ``Image`` elements of a TIFF's OME-XML, as dictionaries."""
    text = tiff.ome_metadata if tiff.is_ome else None
    images = xml2dict(text).get("OME", {}).get("Image", []) if text else []
    yield from images if isinstance(images, list) else [images]


def ome_pixels(tiff: TiffFile, series: TiffPageSeries) -> dict[str, Any]:
    """The ``Pixels`` element of a series; empty if there is none."""
    images = list(ome_images(tiff))
    index = next((at for at, other in enumerate(tiff.series) if other is series), 0)
    named = [image for image in images if series.name and image.get("Name") == series.name]
    chosen = named[0] if len(named) == 1 else images[index] if index < len(images) else {}
    return chosen.get("Pixels") or {}


def ome_size(pixels: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """``PhysicalSizeY`` and ``PhysicalSizeX`` in micrometres, which is OME's unit if none is given."""
    sides = []
    for axis in "YX":
        size, unit = number(pixels.get(f"PhysicalSize{axis}")), micrometres(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        sides.append(None if size is None or unit is None else size * unit)
    return tuple(sides)


def imagej_size(tiff: TiffFile, page: TiffPage) -> tuple[float, float] | None:
    """ImageJ's unit in the description, with the resolution in pixels per that unit."""
    match = re.search(r"^unit=(.*)$", page.description, flags=re.MULTILINE)
    unit = micrometres(match[1]) if match and page.description.startswith("ImageJ=") else None
    return None if unit is None else tuple(unit / per_unit for per_unit in _pixels_per_unit(page))


def aperio_size(description: str) -> tuple[float, float] | None:
    """Aperio's ``MPP`` in the description."""
    match = re.search(r"\|\s*MPP\s*=\s*([\d.,]+)", description) if description.startswith("Aperio") else None
    size = number(match[1]) if match else None
    return None if size is None else (size, size)


def resolution_size(page: TiffPage) -> tuple[float, float] | None:
    """The TIFF tags, if in pixels per inch or centimetre."""
    unit = {2: UM_PER_INCH, 3: 1e4}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    return None if unit is None else tuple(unit / per_unit for per_unit in _pixels_per_unit(page))


def _pixels_per_unit(page: TiffPage) -> Iterator[float]:
    for name in ("YResolution", "XResolution"):
        above, below = page.tags[name].value
        yield above / below


def openslide_pixel_size(properties: Mapping[str, str]) -> tuple[Pair | None, str | None]:
    """Micrometres per pixel, (y, x), in OpenSlide's properties of a scanner's format, and where they are from."""
    unit = {"inch": UM_PER_INCH, "centimeter": 1e4}.get(properties.get("tiff.ResolutionUnit", ""))
    return first_plausible(
        {
            "OpenSlide": lambda: tuple(number(properties.get(f"openslide.mpp-{axis}")) for axis in "yx"),
            "Aperio": lambda: (number(properties["aperio.MPP"]),) * 2,
            "TIFF resolution": lambda: tuple(unit / number(properties[f"tiff.{axis}Resolution"]) for axis in "YX"),
        }
    )
