import json
from importlib.metadata import distribution

import pytest

from scripts.errors import BundleError
from scripts.sharing.reachable import reached_files, required_packages


@pytest.fixture()
def root(tmp_path):
    files = {
        "scripts/__init__.py": "",
        "scripts/a.py": "import json\nfrom .b import f\nfrom . import c\nSTYLE = 'a.css'\n",
        "scripts/a.css": "",
        "scripts/b.py": "import numpy\n\ndef f():\n    from scripts.parts.d import g\n",
        "scripts/c.py": "import a_package_that_nobody_has\n",
        "scripts/parts/__init__.py": "from .d import g\n",
        "scripts/parts/d.py": "from ..e import h\nfrom PIL import Image\n",
        "scripts/parts/unused.py": "",
        "scripts/e.py": "",
        "scripts/unused.py": "from .e import h\n",
        "scripts/unused.css": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def config(root, **content):
    (root / "config.json").write_text(json.dumps(content))
    return [root / "config.json"]


def reached(root, **content):
    return {path.as_posix() for path in reached_files(config(root, **content), root)}


def test_imports_are_followed_and_nothing_else_comes(root):
    everything = {"__init__.py", "a.py", "a.css", "b.py", "c.py", "parts/__init__.py", "parts/d.py", "e.py"}
    assert reached(root, x={"_target_": "scripts.a.f"}) == {f"scripts/{name}" for name in everything}
    assert reached(root, x={"_target_": "scripts.e.h"}) == {"scripts/__init__.py", "scripts/e.py"}


def test_names_in_expressions_and_of_packages_count(root):
    parts = {f"scripts/{name}" for name in ("__init__.py", "parts/__init__.py", "parts/d.py", "e.py")}
    assert reached(root, x="$scripts.parts.g(@y)") == parts


def test_a_name_of_nothing_is_an_error(root):
    for name in ("scripts.missing.f", "scripts.parts.missing.f"):
        with pytest.raises(ValueError, match=f"got '{name}'"):
            reached(root, x={"_target_": name})


def test_packages_have_pips_names_and_installed_versions(root):
    import numpy
    import PIL
    import skimage

    pillow = distribution("pillow").metadata["Name"]  # with a capital up to 10
    versions = {"numpy": numpy.__version__, pillow: PIL.__version__, "scikit-image": skimage.__version__}
    configs = config(root, x={"_target_": "skimage.draw.disk"}, y={"_target_": "scripts.b.f"})
    assert required_packages(configs, root) == versions
    assert required_packages(config(root, x="$scripts.parts.g()"), root) == {pillow: PIL.__version__}


def test_a_package_that_is_not_installed_is_an_error(root):
    with pytest.raises(BundleError, match=r"\['a_package_that_nobody_has'\] must be installed"):
        required_packages(config(root, x={"_target_": "scripts.a.f"}), root)
