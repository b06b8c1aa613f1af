"""Synthetic H&E tissue with exact masks.

A pixel is ``white point * 10 ** -(concentrations @ stain vectors)``: the Beer-Lambert law with the optical densities of
haematoxylin and eosin (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001). The three tissues share stains, matrix
and stain variation; they differ in the size, shape and density of their nuclei and in the fibres between them. A
pixel's colour alone therefore does not identify its tissue. Structures are sized for 1 um per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import ndimage

from ...errors import BundleError

CLASS_NAMES = ("tumor", "stroma", "lymphocytes")
PALETTE = ((255, 255, 255), (205, 51, 51), (255, 165, 0), (65, 105, 225))  # RGB of mask values 0 (background) to 3
MIN_SHARE = 0.05  # smallest share of a patch's area at which a class counts as present
MIN_SIZE_PX = 32
MAX_GLASS = 0.6
PAD_PX = 8  # drawn around a patch and cropped, so that nuclei cross its edges
FRAGMENT_PX = 150  # smaller pieces of tissue could not show their texture


@dataclass(frozen=True)
class Stain:
    """Colours of one laboratory and scanner.

    Args:
        haematoxylin: optical density in (R, G, B) at concentration 1.
        haematoxylin_strength: range of its strength over patches.
        eosin, eosin_strength: likewise.
        white_point: (R, G, B) in [0, 255] of bare glass.
        jitter: standard deviation of a patch's deviation from the two stain vectors.
    """

    haematoxylin: tuple[float, float, float]
    haematoxylin_strength: tuple[float, float]
    eosin: tuple[float, float, float]
    eosin_strength: tuple[float, float]
    white_point: tuple[float, float, float]
    jitter: float = 0.03


STAINS = {
    "lab_a": Stain((0.60, 0.68, 0.30), (0.75, 1.15), (0.10, 0.86, 0.42), (0.75, 1.25), (243, 241, 244)),
    "lab_b": Stain((0.46, 0.80, 0.42), (0.80, 1.20), (0.12, 0.72, 0.66), (2.00, 3.00), (246, 240, 230)),
}


@dataclass(frozen=True)
class Nuclei:
    """One population of nuclei; ranges are (low, high), drawn per nucleus, except the spacing, drawn once for all.

    Args:
        spacing_px: range of the minimum distance between two centres.
        radius_px: range of the longer semi-axis.
        aspect: range of the shorter semi-axis divided by the longer one.
        irregularity: amplitude of the outline's waves, as a fraction of the radius.
        chromatin: range of the haematoxylin concentration at the nuclear membrane.
        paleness: fraction of the chromatin missing at the centre; 0 is solid, 1 an empty vesicle.
        alignment: 0 for any angle, 1 for the angle of the fibres.
    """

    spacing_px: tuple[float, float]
    radius_px: tuple[float, float]
    aspect: tuple[float, float]
    irregularity: float
    chromatin: tuple[float, float]
    paleness: float
    alignment: float


@dataclass(frozen=True)
class Tissue:
    """Populations of nuclei in a matrix (cytoplasm or collagen).

    Args:
        nuclei: the populations.
        haematoxylin: range of the matrix's mean concentration, drawn once per patch.
        eosin: likewise.
        fibres: contrast of the fibres in the matrix's eosin.
        grain: contrast of the grain in the matrix's eosin.
    """

    nuclei: tuple[Nuclei, ...]
    haematoxylin: tuple[float, float]
    eosin: tuple[float, float]
    fibres: float
    grain: float


EPITHELIAL = Nuclei((10.0, 12.5), (5.2, 8.0), (0.55, 0.85), 0.07, (0.60, 1.05), 0.55, 0.0)
SPINDLE = Nuclei((13.0, 17.0), (6.5, 9.5), (0.15, 0.26), 0.04, (0.60, 1.00), 0.10, 1.0)
LYMPHOCYTE = Nuclei((5.8, 7.2), (2.4, 3.5), (0.85, 1.00), 0.03, (0.60, 1.05), 0.12, 0.0)
STRAY = replace(LYMPHOCYTE, spacing_px=(34.0, 60.0))
LUMEN = Nuclei((0.0, 0.0), (5.0, 13.0), (0.35, 0.90), 0.08, (1.0, 1.0), 0.0, 0.0)  # a vessel's or cleft's outline
TISSUES = {  # by mask value
    1: Tissue((EPITHELIAL, STRAY), (0.08, 0.20), (0.20, 0.34), 0.10, 0.16),
    2: Tissue((SPINDLE, STRAY), (0.08, 0.20), (0.22, 0.36), 0.42, 0.08),
    3: Tissue((LYMPHOCYTE,), (0.06, 0.18), (0.20, 0.34), 0.14, 0.14),
}


def mix_stains(concentrations: np.ndarray, stain_vectors: np.ndarray, white_point: np.ndarray) -> np.ndarray:
    """Turn stain concentrations into light by the Beer-Lambert law.

    Args:
        concentrations: (H, W, S) of S stains, at least 0.
        stain_vectors: (S, 3), optical density in (R, G, B) at concentration 1.
        white_point: (3,) or (H, W, 3), the light where there is no stain.

    Returns:
        (H, W, 3) float, in the unit of ``white_point``.
    """
    return white_point * 10.0 ** -(concentrations @ stain_vectors)


@cache
def blur_weights(length: int, scale_px: float) -> np.ndarray:
    """Weights (length, nodes), with unit norm in each row, that blur normal noise with a Gaussian of ``scale_px``.

    Gaussian bumps one ``scale_px`` apart look like filtered white noise, at the cost of a small matrix product.
    """
    nodes = np.arange(-3, length / scale_px + 3) * scale_px
    bumps = np.exp(-0.5 * ((np.arange(length)[:, None] - nodes) / scale_px) ** 2)
    return bumps / np.linalg.norm(bumps, axis=1, keepdims=True)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: tuple[float, float]) -> np.ndarray:
    """Draw normal noise (H, W) with mean 0 and variance 1 at every pixel, blurred by ``scale_px`` (rows, columns)."""
    rows, columns = (blur_weights(*pair) for pair in zip(shape, scale_px, strict=True))
    return rows @ rng.standard_normal((rows.shape[1], columns.shape[1])) @ columns.T


def place_centres(rng: np.random.Generator, free: np.ndarray, spacing_px: float) -> np.ndarray:
    """Throw darts at the true pixels of ``free``, (H, W) bool, until no more fit: (N, 2) int rows and columns."""
    reach = int(np.ceil(spacing_px))
    grid = np.arange(-reach, reach + 1)
    near = grid[:, None] ** 2 + grid**2 < spacing_px**2
    padded = np.pad(free, reach)
    inner = padded[reach:-reach, reach:-reach]  # a view: pixels cleared by a dart are not drawn in the next volley
    centres = []
    while inner.any():
        volley = rng.permutation(np.flatnonzero(inner))[:256]
        for row, column in zip(*np.divmod(volley, free.shape[1]), strict=True):
            if inner[row, column]:
                padded[row : row + 2 * reach + 1, column : column + 2 * reach + 1][near] = False
                centres.append((row, column))
    return np.array(centres, dtype=int).reshape(-1, 2)


def draw_nuclei(
    rng: np.random.Generator, shape: tuple[int, int], centres: np.ndarray, angles: np.ndarray, nuclei: Nuclei
) -> np.ndarray:
    """Draw anti-aliased, wavy ellipses.

    Args:
        shape: (H, W) of the maps.
        centres: (N, 2) int rows and columns.
        angles: (N,) angles of the long axes, in radians from the column axis towards the row axis.
        nuclei: their appearance.

    Returns:
        (2, H, W) float32: haematoxylin concentration and coverage in [0, 1].
    """
    count = len(centres)
    reach = int(np.ceil(nuclei.radius_px[1] * (1 + 2 * nuclei.irregularity))) + 1
    grid = np.arange(-reach, reach + 1, dtype=np.float32)

    def draw(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1)).astype(np.float32)

    dy, dx = grid[:, None] - draw(-0.5, 0.5), grid - draw(-0.5, 0.5)  # centres may be anywhere within their pixel
    cosine, sine = (f(angles).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    long_px = draw(*nuclei.radius_px)
    short_px = long_px * draw(*nuclei.aspect)
    u, v = (cosine * dx + sine * dy) / long_px, (cosine * dy - sine * dx) / short_px  # (N, K, K)
    turn = np.arctan2(v, u)
    waves = sum(np.cos(k * turn + draw(0, 2 * np.pi)) for k in (2, 3))
    radius = np.hypot(u, v) / (1 + nuclei.irregularity * waves)
    coverage = np.clip((1 - radius) * short_px + 0.5, 0, 1)
    nucleolus = np.exp(-(((u - draw(-0.4, 0.4)) * long_px) ** 2 + ((v - draw(-0.4, 0.4)) * short_px) ** 2) / 2)
    profile = 1 - nuclei.paleness * (1 - np.minimum(radius, 1) ** 4) + nuclei.paleness * nucleolus
    layers = np.stack([coverage * draw(*nuclei.chromatin) * profile, coverage], axis=1)  # (N, 2, K, K)
    canvas = np.zeros((2, shape[0] + 2 * reach, shape[1] + 2 * reach), dtype=np.float32)
    for (row, column), layer in zip(centres, layers, strict=True):
        window = canvas[:, row : row + 2 * reach + 1, column : column + 2 * reach + 1]
        np.maximum(window, layer, out=window)
    return canvas[:, reach:-reach, reach:-reach]


def draw_fibres(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw wavy fibres: their density, with mean 0 and variance about 1, and their angle in radians, each (H, W)."""
    y, x = np.mgrid[: shape[0], : shape[1]] - np.array(shape).reshape(2, 1, 1) / 2
    angle = rng.uniform(0, np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    phase = 2 * np.pi * along / rng.uniform(18, 28) + smooth_noise(rng, shape, (16, 16))
    across += 7 * smooth_noise(rng, shape, (24, 24)) + rng.uniform(1, 2) * np.sin(phase)
    slope_y, slope_x = np.gradient(across)
    side = int(np.hypot(*shape)) + 60
    density = np.zeros(shape)
    for weight, scale_px in ((0.8, (1.3, 20)), (0.6, (4.0, 40))):  # fibrils and bundles
        straight = smooth_noise(rng, (side, side), scale_px)
        where = [across + side / 2, along + side / 2]
        density += weight * ndimage.map_coordinates(straight, where, order=1, mode="reflect")
    return density, np.arctan2(slope_x, -slope_y)  # a fibre follows constant ``across``


def draw_tissue(
    rng: np.random.Generator, region: np.ndarray, tissue: Tissue, fibres: np.ndarray, angle: np.ndarray
) -> np.ndarray:
    """Fill ``region``, (H, W) bool, with a tissue along fibres of the given density and angle, each (H, W).

    Returns:
        (H, W, 2) concentrations of haematoxylin and eosin, 0 outside the region.
    """
    shape = region.shape
    texture = 1 + tissue.fibres * fibres + tissue.grain * smooth_noise(rng, shape, (1.2, 1.2))
    haematoxylin = rng.uniform(*tissue.haematoxylin) * np.clip(1 + 0.35 * smooth_noise(rng, shape, (12, 12)), 0.2, None)
    eosin = rng.uniform(*tissue.eosin) * np.clip(texture, 0.35, 2.2)
    speckle = 1 + 0.12 * smooth_noise(rng, shape, (0.9, 0.9))
    depth_px = ndimage.distance_transform_edt(region)
    for nuclei in tissue.nuclei:
        # Most of a nucleus's width stays within its tissue; what protrudes is cut off, so that the mask is exact.
        free = depth_px > 0.8 * nuclei.radius_px[0] * nuclei.aspect[1]
        centres = place_centres(rng, free, rng.uniform(*nuclei.spacing_px))
        deviation = (1 - nuclei.alignment) * rng.uniform(-np.pi / 2, np.pi / 2, len(centres))
        angles = angle[tuple(centres.T)] + deviation + rng.normal(0, 0.12, len(centres))
        chromatin, covered = draw_nuclei(rng, shape, centres, angles, nuclei)
        haematoxylin = np.maximum(haematoxylin * (1 - 0.3 * covered), chromatin * speckle)
        eosin = eosin * (1 - 0.6 * covered)
    return region[..., None] * np.stack([haematoxylin, eosin], axis=-1)


def absorb_fragments(mask: np.ndarray, least_px: int) -> np.ndarray:
    """Merge every connected piece of ``mask``, (H, W), with fewer than ``least_px`` pixels into the nearest region."""
    small = np.zeros(mask.shape, dtype=bool)
    for value in np.unique(mask):
        pieces, _ = ndimage.label(mask == value)
        small |= (np.bincount(pieces.ravel()) < least_px)[pieces] & (pieces > 0)
    nearest = ndimage.distance_transform_edt(small, return_distances=False, return_indices=True)
    return mask[tuple(nearest)]


def draw_layout(rng: np.random.Generator, size_px: int, tissues: Sequence[int], glass: float) -> np.ndarray:
    """Propose a layout of the tissues: (size_px, size_px) uint8 with values 0 and ``tissues``, in any proportion."""
    shape = (size_px, size_px)
    fields = [
        smooth_noise(rng, shape, (22, 22)) + 0.1 * smooth_noise(rng, shape, (5, 5)) + rng.normal(0, 0.25)
        for _ in tissues
    ]
    mask = np.asarray(tissues, dtype=np.uint8)[np.argmax(fields, axis=0)]
    gap = smooth_noise(rng, shape, (26, 26)) + 0.08 * smooth_noise(rng, shape, (4, 4))
    mask[gap < np.quantile(gap, glass)] = 0
    mask = absorb_fragments(mask, FRAGMENT_PX)
    lumina = rng.integers(0, size_px, (rng.poisson((size_px / 128) ** 2), 2))
    _, covered = draw_nuclei(rng, shape, lumina, rng.uniform(0, np.pi, len(lumina)), LUMEN)
    mask[covered > 0.5] = 0
    return mask


def scan(rng: np.random.Generator, concentrations: np.ndarray, stain: Stain) -> np.ndarray:
    """Stain, illuminate and scan a section: (H, W, 2) concentrations to an (H, W, 3) uint8 RGB image."""
    shape = concentrations.shape[:2]
    strength = [rng.uniform(*stain.haematoxylin_strength), rng.uniform(*stain.eosin_strength)]
    thickness = np.clip(1 + 0.1 * smooth_noise(rng, shape, (30, 30)), 0.6, 1.4)
    vectors = np.array([stain.haematoxylin, stain.eosin])
    vectors = np.clip(vectors + rng.normal(0, stain.jitter, vectors.shape), 0.02, None)
    lamp = np.array(stain.white_point) * rng.uniform(0.97, 1.0) + rng.normal(0, 1.5, 3)
    lamp = lamp * (1 + 0.012 * smooth_noise(rng, shape, (60, 60)))[..., None]  # (H, W, 3)
    light = mix_stains(concentrations * strength * thickness[..., None], vectors, lamp)
    blur_px = rng.uniform(0.5, 0.8)
    light = ndimage.gaussian_filter(light, (blur_px, blur_px, 0))
    light += rng.normal(0, 1, light.shape) * np.sqrt(1 + light / 60)  # read noise and shot noise
    return np.clip(np.round(light), 0, 255).astype(np.uint8)


def require_whole_number(name: str, value: int, least: int) -> None:
    """Raise a BundleError unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BundleError(f"`{name}` must be a whole number, got {value!r}; use {least} or more.")


def make_patch(
    rng: np.random.Generator, size_px: int, tissues: Sequence[int], stain: Stain = STAINS["lab_a"], glass: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a patch and its mask; the same state of ``rng`` gives the same tissue in every stain.

    Args:
        rng: source of all randomness.
        size_px: height and width, at least 32.
        tissues: distinct mask values, 1 to 3, of the tissues to show; each covers at least 5 % of the patch.
        stain: the laboratory's colours.
        glass: share of bare glass in [0, 0.6], in addition to small vessels and clefts.

    Returns:
        image, (size_px, size_px, 3) uint8 RGB, and mask, (size_px, size_px) uint8, 0 for background and vessels.

    Raises:
        BundleError: for an argument out of range, or if the tissues do not fit.
    """
    require_whole_number("size_px", size_px, MIN_SIZE_PX)
    if not tissues or len(set(tissues)) < len(tissues) or not set(tissues) <= set(TISSUES):
        raise BundleError(f"`tissues` must be distinct values of {sorted(TISSUES)}, got {tissues}; use at least one.")
    if not 0 <= glass <= MAX_GLASS:
        raise BundleError(f"`glass` must be in [0, {MAX_GLASS}], got {glass}; use a fraction, not a percentage.")
    inner = (slice(PAD_PX, -PAD_PX), slice(PAD_PX, -PAD_PX))
    for _ in range(200):
        mask = draw_layout(rng, size_px + 2 * PAD_PX, tissues, glass)
        shares = [(mask[inner] == value).mean() for value in tissues]
        if min(shares) >= MIN_SHARE:
            break
    else:
        raise BundleError(
            f"`tissues` must each cover {MIN_SHARE:.0%} of the patch, but {tissues} do not fit in {size_px} px with "
            f"{glass:.0%} glass; use fewer tissues, less glass or a larger `size_px`."
        )
    fibres, angle = draw_fibres(rng, mask.shape)
    concentrations = sum(draw_tissue(rng, mask == value, TISSUES[value], fibres, angle) for value in tissues)
    return scan(rng, concentrations, stain)[inner], mask[inner]
