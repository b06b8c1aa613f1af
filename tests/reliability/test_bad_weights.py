"""Files of weights, checkpoints and MXNet's ``.params`` that are not as they must be: nothing in them is run."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from bad_input import both, require_sentence, stopped, table, write_bytes
from ignite.engine import Engine
from mxnet_files import params_bytes
from torch import nn

from scripts.training.checkpoints import ResumeHandler
from scripts.weights.importing import convert, import_weights
from scripts.weights.mxnet_params import read_params
from scripts.weights.state_dicts import load_backbone, load_weights, read_state_dict


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


STATE = network().state_dict()


class Trap:
    """Unpickling it makes the file ``victim`` in the working directory."""

    def __reduce__(self):
        return open, ("victim", "w")


def save(name, content, **options):
    """A fault: a file of ``torch.save``."""
    return lambda folder: torch.save(content, folder / name, **options)


def changed(name, **tensors):
    """A fault: the network's weights with other tensors; ``None`` takes one out."""
    state = {key.replace(".", "_"): (key, value) for key, value in STATE.items()}
    state |= {key: (state.get(key, (key,))[0], value) for key, value in tensors.items()}
    return save(name, {key: value for key, value in state.values() if value is not None})


def shortened(name, share):
    """A fault: a file without its end."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int(share * (folder / name).stat().st_size)]
    )


def safe(header, data=b"", length=None):
    """A fault: ``model.safetensors`` with any header, of any stated length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return write_bytes("model.safetensors", struct.pack("<Q", len(text) if length is None else length) + text + data)


def safe_state(folder):
    safetensors.torch.save_file(STATE, folder / "model.safetensors")


def tensor(first, last, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


NAN = torch.full((4,), torch.nan)
READ = "model.pt must be a state dict written by torch.save; it cannot be read"
TORCH = table(
    ("code", save("model.pt", {"0.weight": Trap()}), READ, "objects and code in it are not loaded", "download the"),
    ("code in the old format", save("model.pt", Trap(), _use_new_zipfile_serialization=False), READ, "are not loaded"),
    ("a plain pickle", write_bytes("model.pt", pickle.dumps(Trap(), protocol=2)), READ, "are not loaded", "save"),
    ("a whole network", save("model.pt", network()), READ, "save `network.state_dict()`"),
    ("no bytes", write_bytes("model.pt", b""), READ, "download the file again"),
    ("text", write_bytes("model.pt", b"version https://git-lfs.github.com/spec/v1"), READ, "download the file again"),
    ("cut short", both(save("model.pt", STATE), shortened("model.pt", 0.6)), READ, "download the file again"),
    ("a tensor", save("model.pt", torch.zeros(3)), "model.pt must be a bare state dict", "got Tensor"),
    ("a number in it", save("model.pt", STATE | {"epoch": 3}), "model.pt must be a bare state dict"),
    ("nothing", save("model.pt", {}), "tensors: 7 are missing (0.weight, 0.bias,", "configs it was"),
    (
        "another width",
        changed("model.pt", **{"0_weight": torch.zeros(9, 3, 3, 3)}),
        "have other shapes (0.weight (9, 3",
    ),
    (
        "a name missing",
        changed("model.pt", **{"1_bias": None}),
        "1 are missing (1.bias)",
        "configs it was trained with",
    ),
    (
        "a name too many",
        changed("model.pt", more=torch.zeros(1)),
        "1 are not part of it (more)",
        "configs it was trained with",
    ),
    (
        "NaN",
        changed("model.pt", **{"1_weight": NAN}),
        "model.pt must contain only finite numbers, but ['1.weight'] have NaN",
        "tr",
    ),
    (
        "infinity",
        changed("model.pt", **{"0_bias": NAN.nan_to_num(torch.inf)}),
        "must contain only finite numbers, but ['0.bias']",
    ),
    (
        "no values",
        changed("model.pt", **{"0_bias": torch.zeros(4, device="meta")}),
        "model.pt must contain dense tensors",
    ),
    (
        "sparse",
        changed("model.pt", **{"0_bias": torch.zeros(4).to_sparse()}),
        "must contain dense tensors",
        "['0.bias']",
    ),
)
FILE = "model.safetensors must be a safetensors file; it cannot be read"
SAFE = table(
    ("no bytes", write_bytes("model.safetensors", b""), FILE, "Download or save it again"),
    ("text", write_bytes("model.safetensors", b"version https://git-lfs.github.com/spec/v1"), FILE, "Download or save"),
    ("torch's format", save("model.safetensors", STATE), FILE, "Download or save it again"),
    ("cut short", both(safe_state, shortened("model.safetensors", 0.7)), FILE, "Download or save it again"),
    ("a header beyond the file", safe({}, length=10**12), FILE, "Download or save it again"),
    ("a header that is no JSON", safe(b"{'a': 1}"), FILE, "Download or save it again"),
    ("tensors that overlap", safe({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), FILE, "Download"),
    ("a tensor beyond the file", safe({"a": tensor(0, 8)}, bytes(4)), FILE, "Download or save it again"),
    ("a shape of another size", safe({"a": tensor(0, 8, shape=(3,))}, bytes(8)), FILE, "Download or save it again"),
    ("a size that overflows", safe({"a": tensor(0, 8, shape=(2**62, 2**62))}, bytes(8)), FILE, "Download or save"),
    ("an unknown type", safe({"a": tensor(0, 8, "F31")}, bytes(8)), FILE, "Download or save it again"),
    ("another network", safe({"a": tensor(0, 8)}, bytes(8)), "model.safetensors must match the network, which has"),
)
ARRAYS = {"arg:a_weight": np.zeros((2, 3), np.float32)}
PARAMS = table(
    ("no bytes", b"", "x.params must be an MXNet NDArray file", "Download it again"),
    ("text", b"version https://git-lfs.github.com/spec/v1", "must be an MXNet NDArray file: it must start", "Download"),
    (
        "cut short",
        params_bytes(ARRAYS)[:-3],
        "x.params must be an MXNet NDArray file",
        "the file ends too early",
        "Download",
    ),
    ("bytes too many", params_bytes(ARRAYS) + b"x", "nothing may follow the names", "Download it again"),
    ("a count without end", struct.pack("<QQQ", 0x112, 0, 2**63), "the file ends too early", "Download it again"),
    (
        "a shape without end",
        struct.pack("<QQQ2I3q3i", 0x112, 0, 1, 0xF993FAC8, 3, 2**40, 2**40, 2**40, 1, 0, 0),
        "values of float32 must follow, but the file ends too early",
        "Download it again",
    ),
    (
        "another network's",
        params_bytes(ARRAYS),
        "x.params must contain exactly the weights",
        "missing: arg:conv1a",
        "kind",
    ),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, which is the working directory too."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", [*TORCH, *SAFE])
def test_weights_are_refused_wherever_they_are_read(folder, case):
    case.spoil(folder)
    (path,) = folder.glob("model.*")
    require_sentence(stopped(load_weights, network(), path), case)
    if case.name != "a name too many":  # a backbone's file may have deeper layers
        whole = nn.ModuleDict({"part": network()})
        require_sentence(stopped(load_backbone, whole, "part", path), case)
    assert not (folder / "victim").exists()


def test_the_trap_works(folder):
    pickle.loads(pickle.dumps(Trap()))
    assert (folder / "victim").exists()


@pytest.mark.parametrize("case", [*TORCH[:7], *SAFE[:11]])
def test_weights_are_refused_by_the_commands(folder, case):
    case.spoil(folder)
    (path,) = folder.glob("model.*")
    require_sentence(stopped(import_weights, str(path), "esfan_stage2", "new.pt", 4), case)
    require_sentence(stopped(convert, str(path), "new.safetensors"), case)
    assert not Path("new.pt").exists() and not Path("new.safetensors").exists() and not Path("victim").exists()


@pytest.mark.parametrize("case", PARAMS)
def test_params_are_refused(folder, case):
    (folder / "x.params").write_bytes(case.spoil)
    require_sentence(stopped(import_weights, "x.params", "resnet38d_imagenet", "new.pt"), case)
    assert not Path("new.pt").exists()
    if not case.name.startswith("another"):
        require_sentence(stopped(read_params, "x.params"), case)


@pytest.mark.parametrize("case", TORCH[:7])
def test_a_damaged_state_of_a_training_is_refused(folder, case):
    case.spoil(folder)
    trainer = Engine(lambda engine, batch: None)
    ResumeHandler("model.pt", {"network": network()}).attach(trainer)
    require_sentence(stopped(trainer.run, [0]), case)
    assert not (folder / "victim").exists()


def test_missing_files_are_named(folder):
    message = stopped(read_state_dict, "model.safetensors")
    assert message.startswith(
        "model.safetensors must be a weights file; it does not exist. Check the path, or run from"
    )
