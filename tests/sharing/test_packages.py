import json
from importlib.metadata import distribution

import pytest

from scripts.errors import BundleError
from scripts.sharing.packages import required_packages


@pytest.fixture()
def root(tmp_path):
    files = {
        "scripts/__init__.py": "",
        "scripts/a.py": "import json\nfrom .b import f\nfrom . import c\n",
        "scripts/b.py": "import numpy\n\ndef f():\n    from scripts.parts.d import g\n",
        "scripts/c.py": "import a_package_that_nobody_has\n",
        "scripts/parts/__init__.py": "from .d import g\n",
        "scripts/parts/d.py": "from ..e import h\nfrom PIL import Image\n",
        "scripts/e.py": "",
        "scripts/unused.py": "import scipy\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def config(root, **content):
    (root / "config.json").write_text(json.dumps(content))
    return [root / "config.json"]


def test_a_name_of_nothing_is_an_error(root):
    for name in ("scripts.missing.f", "scripts.parts.missing.f"):
        with pytest.raises(ValueError, match=f"got '{name}'"):
            required_packages(config(root, x={"_target_": name}), root)


def test_packages_have_pips_names_and_installed_versions(root):
    import numpy
    import PIL
    import skimage

    pillow = distribution("pillow").metadata["Name"]  # with a capital up to 10
    versions = {"numpy": numpy.__version__, pillow: PIL.__version__, "scikit-image": skimage.__version__}
    configs = config(root, x={"_target_": "skimage.draw.disk"}, y={"_target_": "scripts.b.f"})
    assert required_packages(configs, root) == versions
    in_expression = config(root, x="$scripts.parts.g()")
    assert required_packages(in_expression, root) == {pillow: PIL.__version__}
    always = ["Pillow", "scikit-image"]  # however it is spelled, one entry
    assert required_packages(in_expression, root, always) == {
        pillow: PIL.__version__,
        "scikit-image": skimage.__version__,
    }


def test_a_package_that_is_not_installed_is_an_error(root):
    with pytest.raises(BundleError, match=r"\['a_package_that_nobody_has'\] must be installed"):
        required_packages(config(root, x={"_target_": "scripts.a.f"}), root)
