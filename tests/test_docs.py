import re

import pytest
from conftest import BUNDLE


def test_the_examples_of_the_api_page_run_as_they_stand(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(BUNDLE / "configs")
    monkeypatch.chdir(tmp_path)
    page = (BUNDLE / "docs" / "api.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == page.count("```python") >= 5
    exec(compile("\n".join(examples), "api.md", "exec"), {})
    mean_iou, dice = map(float, capsys.readouterr().out.split())
    assert mean_iou == pytest.approx(0.14, abs=0.01) and dice == pytest.approx(0.25, abs=0.02)  # of random masks
