import copy
import os

import pytest
import torch
from conftest import BUNDLE, LITE, TINY
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import IterationEvents, SupervisedTrainer
from monai.handlers import from_engine
from recorded_graph import capture_for
from torch import nn

from scripts.errors import BundleError
from scripts.losses import AdaptiveNoiseAwareLoss
from scripts.runs.stages import stage_config
from scripts.training import step as training_step
from scripts.training.augmentation import PrepareBatch, RandomFlip
from scripts.training.step import TrainingStep

CLASSES = 3
ADVICE = "halve --batch_size and give --train#accumulation_steps 2: as many images in half the memory"


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, CLASSES, 1)
    return nn.Sequential(*layers)


def batches(*sizes):
    generator = torch.Generator().manual_seed(1)
    shapes = [(size, 3, 6, 6) for size in sizes]
    return [
        {
            "image": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            "label": torch.randint(0, CLASSES + 1, (shape[0], 1, 6, 6), generator=generator),
        }
        for shape in shapes
    ]


def loss_of(engine):
    """The loss of a step: ours are lists of one dictionary, MONAI's own a dictionary."""
    output = engine.state.output
    return (output[0] if isinstance(engine._process_function, TrainingStep) else output)["loss"]


def train(data, step, loss=None, change=None, epochs=1, device="cpu", **settings):
    """The losses of each step and the weights after a training; ``change(loss, engine)`` is called before each step."""
    trained, losses = network().to(device), []
    loss = AdaptiveNoiseAwareLoss() if loss is None else loss
    engine = SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=data,
        network=trained,
        optimizer=torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9),
        loss_function=loss,
        prepare_batch=PrepareBatch(spatial=[RandomFlip()]),
        iteration_update=step,
        decollate=False,
        **settings,
    )
    if change is not None:
        engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: change(loss, engine))
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(loss_of(engine).item()))
    if isinstance(step, TrainingStep) and device == "cpu":
        training_step.capture = capture_for(trained)
    torch.manual_seed(2)
    engine.run()
    return losses, trained.state_dict()


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    """Steps are captured on the CPU, by recording them."""
    monkeypatch.setattr(training_step, "GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(training_step, "capture", None)


def assert_same(one, other):
    assert one[0] == other[0]
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)


def test_a_captured_step_trains_as_an_ordinary_one():
    data = batches(*[4] * 8)
    assert_same(train(data, TrainingStep(ADVICE)), train(data, None))
    assert training_step.capture.calls == 1


def test_batches_of_another_size_take_ordinary_steps_and_leave_the_graph_as_it_is():
    data = batches(4, 4, 4, 4, 4, 3, 4, 4, 3, 4)
    assert_same(train(data, TrainingStep(ADVICE), epochs=2), train(data, None, epochs=2))
    assert training_step.capture.calls == 1


def test_a_step_is_captured_anew_when_batches_stay_another_size():
    data = batches(4, 4, 4, 4, 4, 3, 3, 3, 3, 3)
    assert_same(train(data, TrainingStep(ADVICE)), train(data, None))
    assert training_step.capture.calls == 2


def move(loss, engine):
    loss.tau, loss.alpha = 0.2 + 0.05 * engine.state.iteration, 0.4 + 0.1 * engine.state.iteration


def test_scheduled_numbers_are_read_in_each_step():
    data = batches(*[4] * 8)
    moved = train(data, TrainingStep(ADVICE, scheduled=["alpha", "tau"]), change=move)
    assert training_step.capture.calls == 1
    assert moved[0] == pytest.approx(train(data, None, change=move)[0], rel=1e-6)
    assert moved[0] != pytest.approx(train(data, None)[0], rel=1e-2)


def test_the_loss_keeps_its_own_numbers():
    loss = AdaptiveNoiseAwareLoss()
    train(batches(*[4] * 6), TrainingStep(ADVICE, scheduled=["alpha", "tau"]), loss=loss, change=move)
    assert (loss.alpha, loss.tau) == (0.4 + 0.1 * 6, 0.2 + 0.05 * 6)


def test_another_number_of_the_loss_lets_it_be_captured_anew():
    def change(loss, engine):
        loss.beta = 0.4 if engine.state.iteration < 6 else 0.1

    data = batches(*[4] * 10)
    assert_same(train(data, TrainingStep(ADVICE), change=change), train(data, None, change=change))
    assert training_step.capture.calls == 2


@pytest.mark.parametrize("settings", [{"amp": True}, {"accumulation_steps": 2}])
def test_steps_that_cannot_be_captured_are_monai_s_own(settings):
    data = batches(*[4] * 6)
    assert_same(train(data, TrainingStep(ADVICE), **settings), train(data, None, **settings))
    assert training_step.capture.calls == 0


def test_a_step_that_waits_for_a_value_goes_on_without_a_graph(caplog, monkeypatch):
    data, loss = batches(*[4] * 6), AdaptiveNoiseAwareLoss()

    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    step = TrainingStep(ADVICE)
    monkeypatch.setattr("test_step.capture_for", lambda trained: refuse)
    assert_same(train(data, step, loss=loss), train(data, None))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "Training runs without a CUDA graph, more slowly: the step cannot be captured. operation not permitted when "
        "stream is capturing"
    ]


def test_outputs_have_no_gradient_and_events_come_in_monai_s_order():
    seen, outputs = [], []
    step = TrainingStep(ADVICE)

    def watch(loss, engine):
        if engine.state.iteration == 1:
            for event in IterationEvents:
                engine.add_event_handler(event, lambda engine, event=event: seen.append(event.value))
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))

    train(batches(*[4] * 6), step, change=watch)
    assert seen[:4] == ["forward_completed", "loss_completed", "backward_completed", "model_completed"]
    assert seen == seen[:4] * 6
    tensors = [output[name] for (output,) in outputs for name in ("pred", "loss")]
    assert len(tensors) == 12 and not any(tensor.requires_grad for tensor in tensors)
    of_tracking = from_engine(["loss"], first=True)  # by which MONAI's --tracking reads the loss
    assert [of_tracking(output) for output in outputs] == [output["loss"] for (output,) in outputs]


def test_full_memory_names_the_option_that_halves_it(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
        )

    monkeypatch.setattr(training_step, "_gradients", full)
    with pytest.raises(BundleError, match=f"out of memory, 2.00 GiB more needed; {ADVICE}"):
        train(batches(4), TrainingStep(ADVICE))


class FlagsLoss(AdaptiveNoiseAwareLoss):
    """A loss that notes what cuDNN is told."""

    def __init__(self):
        super().__init__()
        self.flags = []

    def forward(self, logits, target):
        self.flags.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32))
        return super().forward(logits, target)


@pytest.mark.parametrize("benchmark", [True, False])
def test_algorithms_are_measured_for_batches_of_the_first_size(benchmark):
    loss = FlagsLoss()
    train(batches(4, 4, 3, 4), TrainingStep(ADVICE, benchmark=benchmark), loss=loss)
    assert loss.flags == [(benchmark and size == 4, True) for size in (4, 4, 3, 4)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_cuda_graph_trains_as_ordinary_steps(monkeypatch, caplog):
    monkeypatch.undo()
    data, step = batches(4, 4, 4, 4, 4, 3, 4, 4), TrainingStep(ADVICE, scheduled=["alpha", "tau"])
    graph, ordinary = (train(data, way, change=move, epochs=2, device="cuda") for way in (step, None))
    assert graph[0] == pytest.approx(ordinary[0], rel=1e-3)  # with the same dropout
    assert isinstance(step._captured, training_step.CapturedStep) and caplog.messages == []


class WaitingLoss(AdaptiveNoiseAwareLoss):
    """A loss that reads a value from the device, which no graph can."""

    def forward(self, logits, target):
        loss = super().forward(logits, target)
        return loss * (1 if loss.item() > 0 else 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_after_a_capture_that_failed_training_goes_on_and_another_succeeds(monkeypatch, caplog):
    monkeypatch.undo()
    data, step = batches(*[4] * 8), TrainingStep(ADVICE)
    failed = train(data, step, loss=WaitingLoss(), device="cuda")
    assert failed[0] == pytest.approx(train(data, None, device="cuda")[0], rel=1e-3)
    assert "the step cannot be captured" in caplog.text
    another = TrainingStep(ADVICE)
    train(data, another, device="cuda")
    assert another._captured is not None


@pytest.mark.parametrize("method", ["esfan", "ibdr"])
@pytest.mark.parametrize("stage", ["train_classifier", "train_segmenter"])
def test_the_configured_steps_train_the_same_captured(monkeypatch, demo_dir, finished_run, tmp_path, method, stage):
    monkeypatch.chdir(BUNDLE)
    states = []
    for captured in (False, True):
        parser = ConfigParser()
        parser.read_config([LITE[0], f"configs/method_{method}.json", *LITE[1:]])
        overrides = {"dataset_dir": str(demo_dir), "output_dir": str(tmp_path), "device": "cpu", **TINY}
        overrides |= {"mask_dir": str(finished_run / "pseudo_masks"), "train#handlers": ["@train#schedule"]}
        parser.update(overrides | {"epochs": 3, "classifier_epochs": 3, "cuda_graph": captured})
        parser["train#schedule"] = {
            "_target_": "scripts.training.handlers.LinearScheduleHandler",
            "target": "@train#loss",
            "start": "@train#loss_schedule#start",
            "end": "@train#loss_schedule#end",
        }
        parser = ConfigParser(stage_config(parser.get(), stage))
        torch.manual_seed(0)
        trained = parser.get_parsed_content("network")
        trainer = parser.get_parsed_content("train#trainer")
        training_step.capture = capture_for(trained)
        torch.manual_seed(1)
        trainer.run()
        assert training_step.capture.calls == captured
        states.append({name: copy.copy(tensor) for name, tensor in trained.state_dict().items()})
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)
    assert os.listdir(tmp_path) == []
