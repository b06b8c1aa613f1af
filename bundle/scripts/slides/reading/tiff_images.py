"""What a TIFF's main image is: its levels, its planes and their colours, its pixel size."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from tifffile import TiffFile, TiffPage, TiffPageSeries

from ...errors import BundleError
from .colours import colours_of
from .description import SlideImage, is_level, level_scale
from .pixel_size import ome_pixels, tiff_pixel_size
from .tiff_levels import Plane, TiffLevel

ASSOCIATED = re.compile(r"(?<![a-z])(label|macro|thumbnail|thumb|overview|preview)(?![a-z])", re.IGNORECASE)
ASSOCIATED_KIND = 9  # Aperio's NewSubfileType of a macro
NAMES = {name: at for at, names in enumerate((("red", "r"), ("green", "g"), ("blue", "b"))) for name in names}
NO_NAME = re.compile(r"((channel|ch|c)?[\s:_#-]*\d*)?", re.IGNORECASE)  # as writers count channels
OME_COLOURS = {0xFF0000FF: 0, 0x00FF00FF: 1, 0x0000FFFF: 2}  # RGBA
STACKS = {"Z": "focal planes", "T": "time points", "C": "channels"}


@dataclass(frozen=True)
class TiffImage:
    """The main image of a TIFF.

    Args:
        image: its description.
        levels: its levels, in the order of the description.
        plain: whether other readers show the same, colours and pages considered.
        associated: sizes of labels and photographs in the file.
    """

    image: SlideImage
    levels: Sequence[TiffLevel]
    plain: bool
    associated: frozenset[tuple[int, int]]

    def close(self) -> None:
        """Close the file, after which no pixels can be read."""
        self.levels[0].page.parent.close()


def describe_tiff(path: Path) -> TiffImage:
    """Describe a TIFF from its tags, without decoding pixels.

    Raises:
        BundleError: if it has no image, or one that is not a picture in colours; the message says what it has.
    """
    tiff = TiffFile(path)
    try:
        return _describe(tiff, path)
    except Exception:
        tiff.close()
        raise


def _describe(tiff: TiffFile, path: Path) -> TiffImage:
    series = main_series(tiff)
    _require_one_picture(series)
    order, assumption = plane_order(tiff, series)
    colours, lock = colours_of(series.levels[0].keyframe, order), Lock()
    full = _shape(series.levels[0].keyframe)
    levels = [
        TiffLevel(list(_planes(level, order is not None)), colours, path, lock)
        for level in series.levels
        if _is_level_of(level.keyframe, series.keyframe)
    ]
    mpp, source = tiff_pixel_size(tiff, series)
    image = SlideImage(
        backend="tifffile",
        format=series.kind,
        level_sizes=[level.shape for level in levels],
        level_scales=[level_scale(full, level.shape) if min(level.shape) else (1.0, 1.0) for level in levels],
        unit_sizes=[level.unit for level in levels if not level.is_mapped],
        mpp=mpp,
        mpp_source=source,
        colour_model="three planes" if order is not None else colours.model + ("A" if colours.alpha else ""),
        planes=len(levels[0].planes),
        background=colours.background,
        held_bytes=sum(level.held_bytes for level in levels),
        assumption=assumption,
    )
    associated = frozenset(_shape(page) for page in associated_pages(tiff, series))
    plain = colours.plain and image.planes == 1 and series.keyframe.samplesperpixel == 3
    return TiffImage(image, levels, plain, associated)


def main_series(tiff: TiffFile) -> TiffPageSeries:
    """The largest image of a file that is no label or photograph."""
    images = [series for series in tiff.series if series.keyframe is not None]
    if not images:
        raise BundleError("it has no image.")
    found = [series for series in images if not _is_associated(series)]
    return max(found or images, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)


def _is_associated(series: TiffPageSeries) -> bool:
    page = series.keyframe
    named = ASSOCIATED.search(series.name or "") or ASSOCIATED.search(_page_name(page))
    return bool(named) or page.subfiletype == ASSOCIATED_KIND


def _page_name(page: TiffPage) -> str:
    """What a page says it is: its name, or a description of one short line."""
    description = page.description.strip()
    described = "" if len(description) > 80 or "\n" in description or description[:1] in ("<", "{") else description
    return f"{page.tags.valueof('PageName', '')} {described}"


def associated_pages(tiff: TiffFile, main: TiffPageSeries) -> Iterator[TiffPage]:
    """The pages that are labels and photographs."""
    for series in tiff.series:
        if series is not main and _is_associated(series):
            yield series.keyframe
    for level in main.levels[1:]:
        if _is_associated(level):
            yield level.keyframe


def _is_level_of(page: TiffPage, first: TiffPage) -> bool:
    """Whether a page is a downsampled copy of the first one, as far as its tags tell."""
    if page is first:
        return True
    alike = ("samplesperpixel", "dtype", "photometric", "planarconfig", "bitspersample")
    named = ASSOCIATED.search(_page_name(page)) or page.subfiletype == ASSOCIATED_KIND
    return (
        not named
        and is_level(_shape(page), _shape(first))
        and all(getattr(page, a) == getattr(first, a) for a in alike)
    )


def _shape(page: TiffPage) -> tuple[int, int]:
    return page.imagelength, page.imagewidth


def _require_one_picture(series: TiffPageSeries) -> None:
    """Refuse stacks, of which a viewer shows one picture at a time."""
    for axis, count in zip(series.axes, series.shape, strict=True):
        if axis in "YXS" or count == 1 or (axis == "C" and count == 3):
            continue
        if axis in "QI" and count == 3 and series.keyframe.samplesperpixel == 1:  # which `plane_order` judges
            continue
        raise BundleError(
            f"it must be one picture in colours, got {count} {STACKS.get(axis, 'pages of one size')}; save the one to "
            "segment as 8-bit RGB."
        )


def plane_order(tiff: TiffFile, series: TiffPageSeries) -> tuple[tuple[int, int, int] | None, str]:
    """Positions of red, green and blue, if they are three greyscale planes or samples, and what that assumes.

    Raises:
        BundleError: if the planes are others, such as fluorescence.
    """
    page = series.keyframe
    pages = [size for axis, size in zip(series.axes, series.shape, strict=True) if axis in "CQI" and size > 1]
    grey = int(page.photometric) == 1
    if not (pages and page.samplesperpixel == 1) and not (grey and page.samplesperpixel == 3):
        if pages:
            raise BundleError("it must be one picture, got several in colours; save each as a file.")
        return None, ""
    if not grey and int(page.photometric) != 2:
        raise BundleError("its planes must be red, green and blue in greyscale; save it as 8-bit RGB.")
    names = channel_names(tiff, series)
    found = [NAMES.get(re.sub(r"\s*channel\s*", "", name.lower()).strip()) for name in names]
    if sorted(found, key=str) == [0, 1, 2]:
        return (found.index(0), found.index(1), found.index(2)), ""
    unnamed = all(NO_NAME.fullmatch(name.strip()) for name in names)
    if unnamed and "Q" not in series.axes and "I" not in series.axes:
        return (0, 1, 2), "its three channels have no names and are taken for red, green and blue"
    raise BundleError(
        f"its planes must be red, green and blue, got {names if not unnamed else 'three pages that do not say so'}; "
        "name its channels red, green and blue in OME-XML, or save it as 8-bit RGB."
    )


def channel_names(tiff: TiffFile, series: TiffPageSeries) -> list[str]:
    """Names of a series' three planes: OME's names or colours, ImageJ's labels or names of pages; else empty."""
    channels = ome_pixels(tiff, series).get("Channel") or []
    channels = channels if isinstance(channels, list) else [channels]
    if len(channels) == 3:
        names = [str(channel.get("Name", "")) for channel in channels]
        colours = [OME_COLOURS.get(int(channel.get("Color", -1)) & 0xFFFFFFFF) for channel in channels]
        if all(NO_NAME.fullmatch(name.strip()) for name in names) and sorted(colours, key=str) == [0, 1, 2]:
            return ["rgb"[at] for at in colours]
        return names
    labels = (tiff.imagej_metadata or {}).get("Labels", []) if tiff.is_imagej else []
    if len(labels) == 3:
        return [str(label) for label in labels]
    if len(channels) == 1 or len(series.pages) != 3:
        return [""] * 3
    return [_page_name(tiff.pages[page.index]) for page in series.pages]


def _planes(level: TiffPageSeries, several: bool) -> Iterator[Plane]:
    """The planes of a level: its first page, its three pages, or the planes of its page."""
    page = level.keyframe
    pages = list(level.pages) if several and page.samplesperpixel == 1 else [page]
    if any(found is None or found.parent is not page.parent for found in pages):
        raise BundleError("its planes must be pages of one file; save it as 8-bit RGB.")
    for found in pages:
        for index in range(page.samplesperpixel if page.planarconfig == 2 else 1):
            yield Plane(found, index)
