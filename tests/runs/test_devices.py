import pytest
import torch

from scripts.runs import devices
from scripts.runs.devices import (
    HostCopy,
    chosen_precision,
    cpu_cores,
    memory_advice,
    prepare_device,
    seed_everything,
    training_algorithms,
    worker_threads,
)


@pytest.fixture(autouse=True)
def settings_kept():
    """The process's own settings are as before after each test."""
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    kept = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = kept
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def one_gpu(monkeypatch):
    """PyTorch says that there is one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_a_gpu_that_is_not_there_is_told_with_what_is(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"got 'cuda.*'; PyTorch .* sees no GPU besides the CPU: pass --device cpu"):
        prepare_device(device)


def test_a_second_gpu_that_is_not_there_is_told_with_the_first(one_gpu):
    with pytest.raises(
        ValueError, match=r"got 'cuda:1'; PyTorch .* sees cuda:0 \(NVIDIA Test\) besides .* pass --device cuda:0"
    ):
        prepare_device("cuda:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", None, 3.5])
def test_names_of_no_device_are_refused(device):
    with pytest.raises(ValueError, match="`device` must be a device such as 'cpu' or 'cuda:0', got"):
        prepare_device(device)


@pytest.mark.parametrize("deterministic", [True, False])
def test_algorithms_are_deterministic_where_runs_must_repeat(deterministic):
    for prepare in (lambda: prepare_device("cpu", deterministic), lambda: seed_everything(3, deterministic)):
        prepare()
        assert torch.backends.cudnn.deterministic is deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic


@pytest.mark.parametrize("benchmark", [True, False])
def test_training_steps_alone_measure_algorithms_and_round_to_tf32(benchmark):
    prepare_device("cpu")
    cudnn = torch.backends.cudnn
    assert not cudnn.benchmark and not cudnn.allow_tf32
    with pytest.raises(KeyError), training_algorithms(benchmark):
        assert cudnn.benchmark is benchmark and cudnn.allow_tf32
        raise KeyError
    assert not cudnn.benchmark and not cudnn.allow_tf32


def test_one_seed_gives_the_same_numbers():
    seed_everything(3)
    drawn = torch.rand(3)
    seed_everything(3)
    assert torch.equal(torch.rand(3), drawn)
    seed_everything(4)
    assert not torch.equal(torch.rand(3), drawn)


def test_a_process_beside_a_gpu_takes_few_threads(one_gpu, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "cpu_cores", lambda: 16)
    threads = torch.get_num_threads()
    prepare_device("cpu")
    assert torch.get_num_threads() == threads
    prepare_device("cuda")
    assert torch.get_num_threads() == devices.THREADS_BESIDE_A_GPU
    monkeypatch.setattr(devices, "cpu_cores", lambda: 1)
    prepare_device("cuda")
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # somebody has decided already
    prepare_device("cuda")
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("asked", "processes", "threads"),
    [(None, None, 6), ("2", None, 2), ("1", None, 1), ("1", "4", 6), ("3", "4", 3), ("64", None, 8), ("x", None, 6)],
)
def test_threads_are_as_many_as_asked_for_and_torchruns_own_one_is_not_asked_for(
    monkeypatch, asked, processes, threads
):
    monkeypatch.setattr(devices, "cpu_cores", lambda: 6)
    for name, value in (("OMP_NUM_THREADS", asked), ("LOCAL_WORLD_SIZE", processes)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert worker_threads(8) == threads


@pytest.mark.parametrize(
    ("affinity", "quota", "processes", "cores"),
    [(16, None, None, 16), (16, "max 100000", None, 16), (16, "450000 100000", None, 4), (4, "800000 100000", None, 4)]
    + [(16, None, "4", 4), (2, None, "8", 1), (16, "20000 100000", None, 1)],
)
def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path, affinity, quota, processes, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(affinity)), raising=False)
    monkeypatch.setattr(devices, "CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n", encoding="ascii")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert cpu_cores() == cores


@pytest.mark.parametrize(("has_it", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_on_gpus_that_have_it(one_gpu, monkeypatch, has_it, chosen):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(1) or has_it)
    monkeypatch.setattr(torch.cuda, "device", lambda device: memory_advice(""))
    assert chosen_precision("auto", "cuda:0") == chosen
    assert asked


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_auto_is_float32_elsewhere(device):
    assert chosen_precision("auto", device) == "float32"
    assert chosen_precision("bfloat16", device) == "bfloat16"


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="`precision` must be one of auto, float32, bfloat16, float16, got 'fp16'"):
        chosen_precision("fp16", "cpu")


def test_a_copy_stays_what_it_was():
    tensor = torch.arange(4.0, requires_grad=True)
    copy = HostCopy(tensor)
    with torch.no_grad():
        tensor.zero_()
    assert copy.is_there()
    assert copy.get().tolist() == [0.0, 1.0, 2.0, 3.0] and not copy.get().requires_grad


def test_other_errors_are_not_taken_for_full_memory():
    with pytest.raises(RuntimeError, match="^something else$"), memory_advice("halve it"):
        raise RuntimeError("something else")
