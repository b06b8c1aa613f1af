import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import BUNDLE
from PIL import Image

import scripts.data.preparing.prepare
import scripts.errors
import scripts.inference.segmenter
import scripts.runs.train
import weakhisto

ROOT = BUNDLE.parent


def python(code, cwd, path, check=True):
    """Run ``code`` in a process that finds packages in ``path``, and in no checkout."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What ``pip install .`` installs, from a copy of the files that it needs."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff"):
        shutil.copy(ROOT / name, source)
    for name in ("weakhisto", "bundle/configs", "bundle/docs", "bundle/scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "bundle" / "models").mkdir()
    shutil.copy(BUNDLE / "models" / "README.md", source / "bundle" / "models")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", site]
    subprocess.run([*pip, source], check=True, capture_output=True)
    (wheel,) = site.glob("weakhisto-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_names_are_those_of_the_bundle_s_own_modules():
    assert weakhisto.load is scripts.inference.segmenter.load
    assert weakhisto.train is scripts.runs.train.train
    assert weakhisto.prepare is scripts.data.preparing.prepare.prepare
    assert weakhisto.BundleError is scripts.errors.BundleError
    assert weakhisto.BUNDLE_ROOT == BUNDLE
    assert {"load", "train", "prepare", "BundleError", "__version__"} <= set(dir(weakhisto))
    with pytest.raises(AttributeError, match="module 'weakhisto' has no attribute 'laod'"):
        weakhisto.laod  # noqa: B018


def test_the_import_is_light(tmp_path):
    heavy = "{'torch', 'monai', 'numpy', 'PIL'} & sys.modules.keys()"
    python(f"import weakhisto; weakhisto.__version__; assert not {heavy}", tmp_path, ROOT)


def test_another_package_called_scripts_is_refused_by_name(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    result = python("import scripts, weakhisto", tmp_path, ROOT, check=False)
    place = re.escape(str(tmp_path / "scripts" / "__init__.py"))
    assert re.search(
        f"ImportError: weakhisto must be imported before any other .*, got one from {place}; import", result.stderr
    )
    python(
        "import weakhisto, scripts; assert scripts.__path__[0].startswith(str(weakhisto.BUNDLE_ROOT))", tmp_path, ROOT
    )


def test_a_bundle_that_is_imported_already_is_the_one_that_is_used(tmp_path):
    shutil.copytree(BUNDLE / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(BUNDLE / "configs", tmp_path / "configs")
    code = """
import scripts.errors, weakhisto
print(weakhisto.BUNDLE_ROOT, scripts.errors.__file__, *sys.path, sep="\\n")
"""
    root, errors, *path = python(code, tmp_path, ROOT).stdout.splitlines()
    assert (root, errors) == (str(tmp_path), str(tmp_path / "scripts" / "errors.py")) and str(BUNDLE) not in path


def test_all_files_of_the_bundle_are_installed(installed):
    kept = [path for folder in ("configs", "docs", "scripts") for path in (BUNDLE / folder).rglob("*")]
    files = {str(path.relative_to(BUNDLE)) for path in kept if path.is_file() and path.suffix != ".pyc"}
    server = re.compile(r"scripts/label_app/(bin|lib|logs|model)/")  # that MONAI Label's server makes
    files = {name for name in files if not server.match(name)} | {"models/README.md"}
    bundle = installed / "weakhisto" / "bundle"
    assert {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()} == files
    assert {path.name for path in (installed / "weakhisto").iterdir()} >= {"LICENSE", "CITATION.cff", "door.py"}


@pytest.mark.e2e
def test_the_installed_package_segments_from_another_folder(installed, finished_run, demo_dir, tmp_path):
    image = sorted((demo_dir / "val" / "img").glob("*.png"))[0]
    code = f"""
import weakhisto
import scripts.inference.segmenter
from PIL import Image
assert str(weakhisto.BUNDLE_ROOT) == {str(installed / "weakhisto" / "bundle")!r}
assert scripts.inference.segmenter.load is weakhisto.load
prediction = weakhisto.load({str(finished_run)!r}, "cpu").predict({str(image)!r})
Image.fromarray(prediction.mask).save("mask.png")
try:
    weakhisto.train("glas", device="cpu")
except weakhisto.BundleError as error:
    print(error)
"""
    result = python(code, tmp_path, installed)
    assert f"{tmp_path / 'data' / 'glas' / 'train' / 'img'} must be a folder of images" in result.stdout
    here = weakhisto.load(finished_run, "cpu").predict(image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), here.mask)


def test_the_version_stands_in_one_place(installed):
    version = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"]
    assert weakhisto.__version__ == version
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: weakhisto.__version__"  # read
    assert [path.name for path in installed.glob("*.dist-info")] == [f"weakhisto-{version}.dist-info"]
    assert re.search(r"^version: (.+)$", Path(ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)[1] == version
    assert re.search(r"^## (\d.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1] == version
