import struct
import tracemalloc

import numpy as np
import pytest
from mxnet_files import FORMS, TYPES, array_bytes, params_bytes

from scripts.weights.mxnet_params import read_params


def examples():
    rng = np.random.default_rng(0)
    arrays = {
        f"arg:x{index}_weight": (rng.normal(size=(3, 2, 1, 4)) * 50).astype(kind) for index, kind in enumerate(TYPES)
    }
    return arrays | {"aux:größe": np.array([np.nan, -0.0, np.inf], dtype=np.float32)}


@pytest.fixture
def write(tmp_path):
    def write(content):
        (tmp_path / "weights.params").write_bytes(content)
        return tmp_path / "weights.params"

    return write


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_header_reads_back_bit_for_bit(write, form):
    arrays = examples()
    read = read_params(write(params_bytes(arrays, form)))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def test_forms_may_be_mixed_and_arrays_be_changed_without_touching_the_file(write):
    a, b = np.arange(6, dtype=np.int64).reshape(2, 3), np.ones(5, dtype=np.float32)
    content = struct.pack("<QQQ", 0x112, 0, 2) + array_bytes(a, "oldest") + array_bytes(b, "V3")
    path = write(content + struct.pack("<QQ1sQ1s", 2, 1, b"a", 1, b"b"))
    read = read_params(path)
    read["b"][:] = 0
    assert (read["a"] == a).all() and (read_params(path)["b"] == 1).all()


def test_a_file_without_arrays_is_empty(write):
    assert read_params(write(params_bytes({}))) == {}


@pytest.mark.parametrize("form", FORMS)
def test_every_truncation_is_an_error(write, form):
    content = params_bytes({"a": np.arange(3, dtype=np.int8), "b": np.ones((2, 1), dtype=np.float32)}, form)
    for length in range(len(content)):
        with pytest.raises(ValueError, match="must be an MXNet NDArray file"):
            read_params(write(content[:length]))


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_give_an_error_or_arrays_of_the_file_s_size(write, form):
    content = params_bytes({"a": np.arange(3, dtype=np.int8), "b": np.ones((2, 1), dtype=np.float32)}, form)
    for position in range(len(content)):
        for bit in (0x01, 0x10, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= bit
            try:
                arrays = read_params(write(damaged))
            except ValueError as error:
                assert "must be an MXNet NDArray file" in str(error)
            else:
                assert sum(array.nbytes for array in arrays.values()) < len(content)


def random_bytes(seed):
    rng = np.random.default_rng(seed)
    head = struct.pack("<QQQ", 0x112, 0, rng.integers(1, 5)) if seed % 2 else b""
    return head + rng.integers(0, 256, rng.integers(0, 200), dtype=np.uint8).tobytes()


def test_noise_is_an_error(write):
    for seed in range(50):
        with pytest.raises(ValueError, match="must be an MXNet NDArray file"):
            read_params(write(random_bytes(seed)))


HUGE = [
    struct.pack("<QQQ", 0x112, 0, 2**63),
    struct.pack("<QQQIiIqq", 0x112, 0, 1, FORMS["V2"], 0, 2, 2**62, 2**62) + struct.pack("<iii", 1, 0, 0),
    struct.pack("<QQQIiIq", 0x112, 0, 1, FORMS["V3"], 0, 1, 2**40) + struct.pack("<iii", 1, 0, 0) + b"x" * 64,
    struct.pack("<QQQII", 0x112, 0, 1, 31, 2**32 - 1) + b"\xff" * 200,
    struct.pack("<QQQQQ", 0x112, 0, 0, 0, 2**60)[:32] + struct.pack("<Q", 2**60),
]


@pytest.mark.parametrize("content", HUGE)
def test_sizes_that_the_file_does_not_hold_are_refused_before_memory_is_taken(write, content):
    path = write(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="must be an MXNet NDArray file"):
        read_params(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


ONE = np.ones(1, dtype=np.float32)
REFUSED = [
    (params_bytes({"a": ONE}, magic=0x113), "start with 0x112"),
    (params_bytes({"a": ONE}, reserved=1), "start with 0x112"),
    (b"PK\x03\x04" + bytes(100), "start with 0x112"),
    (params_bytes({"a": ONE}) + b"\0", "nothing may follow"),
    (params_bytes({"a": ONE}).replace(struct.pack("<Ii", FORMS["V2"], 0), struct.pack("<Ii", FORMS["V2"], 1)), "dense"),
    (struct.pack("<QQQIiI", 0x112, 0, 1, FORMS["V2"], 0, 0) + bytes(40), "1 to 32 dimensions, got 0"),
    (struct.pack("<QQQI", 0x112, 0, 1, 33) + bytes(40), "1 to 32 dimensions, got 33"),
    (struct.pack("<QQQIiIq", 0x112, 0, 1, FORMS["V2"], 0, 1, -1) + bytes(40), "dimensions of size 1 or more"),
    (struct.pack("<QQQIiIq", 0x112, 0, 1, FORMS["V2"], 0, 1, 0) + bytes(40), "dimensions of size 1 or more"),
    (struct.pack("<QQQIiIqiii", 0x112, 0, 1, FORMS["V2"], 0, 1, 1, 1, 0, 7) + bytes(40), "type of 0 to 6, got 7"),
    (struct.pack("<QQQ", 0x112, 0, 1) + array_bytes(ONE) + struct.pack("<Q", 2), "1 names must follow"),
    (struct.pack("<QQQ", 0x112, 0, 1) + array_bytes(ONE) + struct.pack("<QQ1s", 1, 1, b"\xff"), "UTF-8"),
    (struct.pack("<QQQ", 0x112, 0, 2) + 2 * array_bytes(ONE) + struct.pack("<QQ1sQ1s", 2, 1, b"a", 1, b"a"), "differ"),
]


@pytest.mark.parametrize(("content", "rule"), REFUSED, ids=[rule for _, rule in REFUSED])
def test_refuses_with_the_rule_and_the_place(write, content, rule):
    with pytest.raises(ValueError, match=rf"weights.params must be an MXNet NDArray file: .*{rule}.* \(at byte \d+ of"):
        read_params(write(content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.params must be an MXNet NDArray file"):
        read_params(tmp_path / "none.params")
