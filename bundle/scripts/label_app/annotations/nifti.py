"""Masks as NIfTI, for 3D Slicer.

The array's axes are x, y and a single slice, as in ITK, MONAI and 3D Slicer for 2D images. The affine is the one that
ITK assigns to an image without spatial metadata (x to the left, y to the back), so that masks align with their images
in 3D Slicer.
"""

from pathlib import Path

import nibabel as nib
import numpy as np

from ...errors import BundleError
from ...files.atomic import atomic_path

SUFFIXES = (".nii.gz", ".nii")
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_nifti(path: Path, mask: np.ndarray) -> None:
    """Write ``mask``, (H, W) uint8."""
    image = nib.Nifti1Image(np.ascontiguousarray(mask.T[..., None]), AFFINE)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def read_nifti(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a mask, (H, W) integers, ignoring its affine.

    Args:
        path: the file.
        size: required height and width.

    Raises:
        BundleError: if it is not a NIfTI file, has another size, or has values that are not whole numbers.
    """
    try:
        image = nib.load(path)
        shape = tuple(image.shape)
        if shape[:2] + tuple(side for side in shape[2:] if side != 1) != size[::-1]:
            raise BundleError(f"it has {shape} voxels, x first, and its image {size[1]} x {size[0]} pixels.")
        values = np.asarray(image.dataobj).reshape(size[::-1]).T
    except Exception as error:  # nibabel raises many types of error for such files
        raise BundleError(f"the mask must be a NIfTI file of the image's size; {error}") from error
    if not np.array_equal(values, values.round()):
        raise BundleError("the mask's values must be whole numbers, one per class; save it as a label map.")
    return values.astype(np.int64)
