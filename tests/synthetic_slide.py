"""Slides made of numbers: pyramidal TIFFs that OpenSlide and tifffile read.

    python tests/synthetic_slide.py PATH --side 32768 --share 0.5

writes a large one, of which a share is tissue-like texture.
"""

import math

import fire
import numpy as np
import tifffile

TILE_PX = 256


def write_slide(path, image, mpp=1.0, levels=1, compression="zlib", **options):
    """Write ``image``, (H, W, 3) uint8, as tiled TIFF; each level averages 2 x 2 pixels of the one before.

    ``mpp=None`` leaves the resolution out.
    """
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            resolution = {}
            if mpp is not None:
                resolution = {"resolution": (1e4 / mpp / 2**level,) * 2, "resolutionunit": "CENTIMETER"}
            tiff.write(
                image,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression=compression,
                subfiletype=int(level > 0),
                metadata=None,
                **resolution,
                **options,
            )
            height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
            four = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
            image = four.mean(axis=(1, 3)).round().astype(np.uint8)
    return path


def tissue_tile(seed):
    """Purple and pink blots of 32 px, (TILE_PX, TILE_PX, 3) uint8."""
    rng = np.random.default_rng(seed)
    blots = np.kron(rng.random((8, 8)), np.ones((32, 32))) > 0.5
    pixels = np.where(blots[..., None], [120, 60, 150], [230, 150, 190]) + rng.integers(-8, 9, (TILE_PX, TILE_PX, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _jpeg(pixels):
    import imagecodecs  # not where MONAI Label is installed

    return imagecodecs.jpeg8_encode(pixels, level=85, colorspace="rgb", outcolorspace="ycbcr", subsampling="420")


def write_large_slide(path, side, share=0.5, mpp=1.0, seed=0):
    """Write a slide of ``side`` x ``side`` pixels, in streams: tissue in discs that cover about ``share`` of it."""
    pixels = [tissue_tile(seed + number) for number in range(8)]
    tissue, glass = [_jpeg(tile) for tile in pixels], _jpeg(np.full((TILE_PX, TILE_PX, 3), 243, np.uint8))
    period = side / 4  # a disc in each field of four by four
    radius = period * math.sqrt(share / math.pi)

    def disc(row, column, scale, step):
        """Which pixels of a tile, every ``step``-th, lie in a disc."""
        place = (np.arange(0, TILE_PX, step) + 0.5) * scale
        y, x = ((place + first * TILE_PX * scale) % period - period / 2 for first in (row, column))
        return np.hypot(y[:, None], x) < radius

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        size, level = side, 0
        while True:
            tiles = math.ceil(size / TILE_PX)

            def stream(scale=2**level, tiles=tiles):
                for row in range(tiles):
                    for column in range(tiles):
                        number, inside = (row * 7 + column * 3) % len(tissue), disc(row, column, scale, 15)
                        if inside.all() or not inside.any():
                            yield tissue[number] if inside.all() else glass
                        else:
                            yield _jpeg(np.where(disc(row, column, scale, 1)[..., None], pixels[number], np.uint8(243)))

            tiff.write(
                stream(),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=int(level > 0),
                resolution=(1e4 / mpp / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            if size <= 1024:
                break
            size, level = size // 2, level + 1


if __name__ == "__main__":
    fire.Fire(write_large_slide)
