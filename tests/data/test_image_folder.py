import pytest
from PIL import Image

from scripts.data.image_folder import images_to_segment, require_none_failed
from scripts.errors import BundleError


def put(folder, *names, mode="RGB"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (4, 3)).save(folder / name, format="PNG")


def names(folder, **settings):
    return [item["name"] for item in images_to_segment(folder, **settings)]


def test_subfolders_are_searched_and_names_keep_them(tmp_path):
    put(tmp_path, "b.png", "s1/0_0.png", "s0/0_0.TIF", "s0/deep/c.jpg")
    assert names(tmp_path) == ["b.png", "s0/0_0.TIF", "s0/deep/c.jpg", "s1/0_0.png"]
    first = images_to_segment(tmp_path)[0]
    path = str(tmp_path / "b.png")
    assert first == {"image": path, "path": path, "name": "b.png", "error": "", "size": (4, 3)}


def test_hidden_files_thumbnails_masks_and_results_are_left_out(tmp_path):
    put(tmp_path, "a.png", ".a.png", ".b/a.png", "a_thumb.png", "thumbnail.jpg", "@eaDir/a.png", "thumbnails/a.png")
    put(tmp_path, "val/img/v.png", "val/mask/v.png", "mask/own.png", "out/masks/a.png", "thumbprint.png")
    assert names(tmp_path, leave_out=tmp_path / "out") == ["a.png", "mask/own.png", "thumbprint.png", "val/img/v.png"]


def test_earlier_results_are_left_out_wherever_they_are(tmp_path):
    put(tmp_path, "a.png", "masks/a.png", "overlays/a.png", "day1/masks/a.png", "day1/overlays/a.png", "s/masks/b.png")
    assert names(tmp_path, leave_out=tmp_path) == ["a.png", "s/masks/b.png"]


def test_two_links_to_a_folder_are_two_folders_and_one_to_a_folder_above_is_none(tmp_path):
    put(tmp_path / "shared", "a.png")
    for link, target in {"s0": "shared", "s1": "shared", "shared/up": "."}.items():
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    assert names(tmp_path) == ["s0/a.png", "s1/a.png", "shared/a.png"]


def test_bad_headers_are_items_with_the_reason(tmp_path):
    put(tmp_path, "grey.png", mode="L")
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    grey, text = images_to_segment(tmp_path)
    assert "must be an 8-bit RGB image, got L" in grey["error"] and "must be a readable image" in text["error"]
    assert "size" not in grey and "size" not in text


def test_a_file_alone_is_taken_and_what_does_not_exist_refused(tmp_path):
    put(tmp_path, "a_thumb.png")
    assert names(tmp_path / "a_thumb.png") == ["a_thumb.png"]
    with pytest.raises(FileNotFoundError, match="none must be an image or a folder of images; it does not exist"):
        images_to_segment(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="also in subfolders, but has none"):
        images_to_segment(tmp_path)


def test_images_of_one_name_are_refused_within_a_folder_only(tmp_path):
    put(tmp_path, "s0/a.png", "s1/a.png")
    assert len(names(tmp_path)) == 2
    put(tmp_path, "s1/a.jpg")
    with pytest.raises(BundleError, match=r"one image per name, ignoring suffixes, but repeats \['s1/a'\]"):
        images_to_segment(tmp_path)


def test_failures_are_listed_by_name(tmp_path):
    require_none_failed({}, tmp_path)
    with pytest.raises(BundleError) as error:
        require_none_failed({"b": "bad", "a": "worse"}, "out")
    assert str(error.value) == "2 images failed, the masks of the others are in out:\n  a: worse\n  b: bad"
