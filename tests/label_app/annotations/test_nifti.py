import nibabel as nib
import numpy as np
import pytest

from scripts.label_app.annotations.nifti import read_nifti, write_nifti

MASK = np.arange(12, dtype=np.uint8).reshape(3, 4) % 5


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_masks_come_back(tmp_path, suffix):
    write_nifti(tmp_path / f"m{suffix}", MASK)
    assert np.array_equal(read_nifti(tmp_path / f"m{suffix}", (3, 4)), MASK)


def test_axes_and_affine_are_those_of_a_picture_in_3d_slicer(tmp_path):
    write_nifti(tmp_path / "m.nii.gz", MASK)
    image = nib.load(tmp_path / "m.nii.gz")
    assert image.shape == (4, 3, 1) and image.get_data_dtype() == np.uint8
    voxels = np.asarray(image.dataobj)
    assert all(voxels[x, y, 0] == MASK[y, x] for y in range(3) for x in range(4))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")  # x to the left and y to the back, as ITK reads a PNG


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 1, 1)])
def test_other_programs_masks_are_read(tmp_path, shape):
    nib.save(nib.Nifti1Image(MASK.T.reshape(shape).astype(np.float32), np.eye(4)), tmp_path / "m.nii")
    assert np.array_equal(read_nifti(tmp_path / "m.nii", (3, 4)), MASK)


def test_other_sizes_values_and_files_are_refused(tmp_path):
    write_nifti(tmp_path / "m.nii", MASK)
    with pytest.raises(ValueError, match=r"\(4, 3, 1\) voxels, x first, and its image 3 x 4 pixels"):
        read_nifti(tmp_path / "m.nii", (4, 3))
    nib.save(nib.Nifti1Image(np.full((4, 3, 1), 0.5, np.float32), np.eye(4)), tmp_path / "half.nii")
    with pytest.raises(ValueError, match="whole numbers"):
        read_nifti(tmp_path / "half.nii", (3, 4))
    (tmp_path / "x.nii").write_bytes(b"no NIfTI")
    with pytest.raises(ValueError, match="must be a NIfTI file"):
        read_nifti(tmp_path / "x.nii", (3, 4))
