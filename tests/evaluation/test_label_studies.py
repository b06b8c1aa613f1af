import math

import numpy as np
import pytest

from scripts.evaluation.label_studies import fewer_or_wrong_labels

NAMES = ["tumor", "stroma"]


@pytest.fixture
def data(tmp_path):
    """A folder of 40 patches with a table of labels, of which every tenth row has an unknown one."""
    folder = tmp_path / "train" / "img"
    folder.mkdir(parents=True)
    rows = ["image,tumor,stroma"]
    for number in range(40):
        (folder / f"{number:02}.png").touch()
        rows.append(f"{number:02}.png,{number % 2},{'' if number % 10 == 0 else 1}")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path, NAMES, tmp_path / "labels.csv"


def named(items):
    return {item["name"]: item["label"] for item in items}


def test_a_smaller_share_is_part_of_a_larger_one_in_the_same_order(data):
    whole = named(fewer_or_wrong_labels(*data))
    half, tenth = (named(fewer_or_wrong_labels(*data, share=share)) for share in (0.5, 0.1))
    assert (len(whole), len(half), len(tenth)) == (40, 20, 4)
    assert tenth.keys() <= half.keys() <= whole.keys() and list(half) == sorted(half)
    np.testing.assert_array_equal(list(half.values()), [whole[name] for name in half])


@pytest.mark.parametrize("wrong", [0.0, 0.25, 1.0])
def test_the_share_of_known_labels_is_flipped_and_unknown_ones_stay(data, wrong):
    before, after = (np.array(list(named(fewer_or_wrong_labels(*data, wrong=w)).values())) for w in (0.0, wrong))
    assert np.isnan(before).sum() == 4 and np.array_equal(np.isnan(before), np.isnan(after))
    known = ~np.isnan(before)
    assert set(after[known]) <= {0, 1}
    assert (before[known] != after[known]).sum() == round(wrong * 76)


def test_another_seed_chooses_others(data):
    chosen = [set(named(fewer_or_wrong_labels(*data, share=0.5, seed=seed))) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(("name", "value"), [("share", 0), ("share", 10), ("wrong", -0.1), ("wrong", math.nan)])
def test_refuses_what_is_no_share(data, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be in .* got {value}"):
        fewer_or_wrong_labels(*data, **{name: value})
