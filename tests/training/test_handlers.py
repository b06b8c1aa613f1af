import logging
import math
import random

import numpy as np
import pytest
import torch
from conftest import BUNDLE
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.metrics import Average
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn
from torch.utils.data import DistributedSampler

from scripts.errors import BundleError
from scripts.evaluation.report.curves import read_curves
from scripts.files.foreign_files import read_json
from scripts.training.checkpoints import BestModelHandler, ResumeHandler
from scripts.training.handlers import (
    GradientClippingHandler,
    LinearScheduleHandler,
    LossHandler,
    RandomSeedHandler,
    ScoreLogHandler,
    StageSizeHandler,
    WeightAveragingHandler,
)
from scripts.training.step import TrainingStep

STEPS = 3  # in an epoch


class PowerCutError(Exception):
    pass


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.Linear(16, 2))


def flip_at_random(batch, device, non_blocking=False, **kwargs):
    image = batch["image"].flip(3) if torch.rand(1) < 0.5 else batch["image"]
    return image + 0.1 * np.random.rand() + 0.1 * random.random(), batch["label"]


class Training:
    """A small training as the bundle's configs wire theirs; ``init`` seeds its initial weights."""

    def __init__(self, folder, max_epochs, init, val_scores=None, total_epochs=4, loss=None):
        random.seed(init)
        np.random.seed(init)
        torch.manual_seed(100)
        items = [{"image": torch.randn(3, 4, 4), "label": torch.randn(2)} for _ in range(2 * STEPS)]
        torch.manual_seed(init)
        self.network = network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, total_epochs * STEPS, power=0.9)
        sampler = DistributedSampler(items, num_replicas=1, rank=0, shuffle=True, seed=0)
        self.loss = nn.MSELoss() if loss is None else loss
        self.loss.weight = 0.0
        scores = val_scores or [0.3, 0.9, 0.5, 0.7]
        self.evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(items[:2], batch_size=2),
            network=self.network,
            key_val_metric={"score": Average(lambda _: scores[self.trainer.state.epoch - 1])},
            val_handlers=[],
            decollate=False,
        )
        self.best_model = BestModelHandler(folder / "best.pt", self.network, "score")
        self.best_model.attach(self.evaluator)
        objects = {
            "network": self.network,
            "optimizer": self.optimizer,
            "lr_scheduler": self.scheduler,
            "best_model": self.best_model,
        }
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=max_epochs,
            train_data_loader=DataLoader(items, batch_size=2, sampler=sampler),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.loss,
            prepare_batch=flip_at_random,
            train_handlers=[
                RandomSeedHandler(5),
                LossHandler("network"),
                LinearScheduleHandler(self.loss, {"weight": 0.0}, {"weight": 1.0}),
                ValidationHandler(interval=1, validator=self.evaluator),
                LrScheduleHandler(self.scheduler, epoch_level=False, print_lr=False),
                ResumeHandler(folder / "checkpoint.pt", objects),
            ],
            iteration_update=TrainingStep("halve the batch"),
            decollate=False,
        )
        self.history = []
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def note(self, engine):
        rate = self.optimizer.param_groups[0]["lr"]
        self.history.append((engine.state.epoch, self.loss.weight, rate, engine.state.output[0]["loss"].item()))

    def run(self):
        self.trainer.run()
        return self

    def run_until(self, step):
        """Run until the power is cut at the start of a step, counted from 1."""

        def cut(engine):
            raise PowerCutError

        self.trainer.add_event_handler(Events.ITERATION_STARTED(once=step), cut)
        with pytest.raises(PowerCutError):
            self.run()

    def state(self):
        """All that a training has learned."""
        return {
            "network": self.network.state_dict(),
            "momentum": [state["momentum_buffer"] for state in self.optimizer.state.values()],
            "rates": self.scheduler.get_last_lr(),
            "best": self.best_model.best,
        }


def assert_same(state, other):
    torch.testing.assert_close(state, other, rtol=0, atol=0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return Training(folder, 4, init=0).run(), torch.load(folder / "best.pt", weights_only=True)


# --- resuming


@pytest.mark.parametrize("step", [1, STEPS, STEPS + 2, 3 * STEPS + 1])
def test_a_training_goes_on_after_its_last_whole_epoch(tmp_path, uninterrupted, step):
    whole, best = uninterrupted

    Training(tmp_path, 4, init=0).run_until(step)
    resumed = Training(tmp_path, 4, init=0 if step <= STEPS else 1).run()
    assert resumed.history == whole.history[(step - 1) // STEPS * STEPS :]
    assert_same(resumed.state(), whole.state())
    assert_same(torch.load(tmp_path / "best.pt", weights_only=True), best)


def test_a_finished_training_does_nothing_more(tmp_path, uninterrupted):
    Training(tmp_path, 4, init=0).run()
    again = Training(tmp_path, 4, init=1).run()
    assert again.history == []
    assert_same(again.network.state_dict(), uninterrupted[0].network.state_dict())


def test_the_checkpoint_holds_no_code(tmp_path):
    Training(tmp_path, 1, init=0).run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(state) == {"trainer", "network", "optimizer", "lr_scheduler", "best_model"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "checkpoint.pt"]


@pytest.mark.parametrize("max_epochs", [2, 4])
def test_refuses_to_go_on_with_other_epochs(tmp_path, max_epochs):
    Training(tmp_path, 3, init=0).run()
    message = f"checkpoint.pt must have the `max_epochs` of this training, {max_epochs}, to resume from it; it has 3"
    with pytest.raises(ValueError, match=message):
        Training(tmp_path, max_epochs, init=0).run()


def test_refuses_to_go_on_with_other_training_images(tmp_path):
    Training(tmp_path, 3, init=0).run_until(STEPS + 1)
    changed = Training(tmp_path, 3, init=0)
    changed.trainer.state.epoch_length = STEPS + 2
    with pytest.raises(
        ValueError, match="must have the `epoch_length` of this training, 5, to resume from it; it has 3"
    ):
        changed.run()


def test_refuses_a_checkpoint_of_another_network(tmp_path):
    Training(tmp_path, 2, init=0).run_until(STEPS + 1)
    other = Training(tmp_path, 2, init=0)
    other.network.add_module("more", nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="more.weight"):
        other.run()


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize(("before", "after"), [(True, None), (None, True), (True, True)])
def test_an_optimiser_goes_on_in_its_own_way_on_another_device(tmp_path, kind, before, after):
    def training(fused, layout):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 2)).to(memory_format=layout)
        settings = {"momentum": 0.9} if kind == "SGD" else {}
        optimizer = getattr(torch.optim, kind)(network.parameters(), lr=0.1, fused=fused, **settings)

        def step(engine, batch):
            optimizer.zero_grad()
            network(batch).square().mean().backward()
            optimizer.step()

        engine = Engine(step)
        engine.state.max_epochs, engine.state.epoch_length = 3, 2
        ResumeHandler(tmp_path / "checkpoint.pt", {"network": network, "optimizer": optimizer}).attach(engine)
        return network, optimizer, engine

    torch.manual_seed(1)
    data = [torch.randn(2, 3, 5, 5) for _ in range(2)]
    network, _, engine = training(None, torch.contiguous_format)
    engine.run(data)
    (tmp_path / "checkpoint.pt").unlink()

    _, _, first = training(before, torch.channels_last)
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), first.terminate)
    first.run(data)
    resumed, optimizer, second = training(after, torch.contiguous_format)
    second.run(data)
    assert second.state.epoch == 3 and optimizer.param_groups[0]["fused"] is after
    torch.testing.assert_close(resumed.state_dict(), network.state_dict())


def test_a_second_process_reads_but_does_not_write(tmp_path, uninterrupted, as_process):
    scores = [0.3, 0.4, 0.5, 0.9]
    Training(tmp_path, 4, init=0, val_scores=scores).run_until(2 * STEPS + 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    as_process(1, 2)
    second = Training(tmp_path, 4, init=1, val_scores=scores).run()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert_same(second.network.state_dict(), uninterrupted[0].network.state_dict())
    assert second.best_model.best == pytest.approx(0.9)


# --- the best model


@pytest.mark.parametrize(
    ("scores", "best_epoch"),
    [([0.3, 0.9, 0.5], 2), ([0.7, 0.7, 0.2], 1), ([-3.0, -2.0, -1.0], 3), ([0.0, 0.0, 0.0], 1)],
)
def test_keeps_the_weights_of_the_best_epoch(tmp_path, scores, best_epoch):
    training = Training(tmp_path, 3, init=0, val_scores=scores)
    weights = {}

    def keep(engine):
        weights[engine.state.epoch] = {name: t.clone() for name, t in training.network.state_dict().items()}

    training.trainer.add_event_handler(Events.EPOCH_COMPLETED, keep)
    training.run()
    assert training.best_model.best == pytest.approx(max(scores))
    assert_same(torch.load(tmp_path / "best.pt", weights_only=True), weights[best_epoch])


def test_the_best_score_survives_a_resume(tmp_path):
    scores = [0.3, 0.9, 0.5, 0.7]
    Training(tmp_path, 4, init=0, val_scores=scores).run_until(2 * STEPS + 1)
    best = (tmp_path / "best.pt").read_bytes()
    resumed = Training(tmp_path, 4, init=1, val_scores=scores).run()
    assert resumed.best_model.best == pytest.approx(0.9)
    assert (tmp_path / "best.pt").read_bytes() == best  # 0.7 is better than 0.5, but not the best


def test_a_score_that_is_no_number_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'score' must be a number to select the best model by, got NaN"):
        Training(tmp_path, 2, init=0, val_scores=[math.nan, 0.5]).run()
    assert not (tmp_path / "best.pt").exists()


# --- losses that are no numbers


class SpoiledLoss(nn.MSELoss):
    """A loss that is ``value`` at its fifth call."""

    def __init__(self, value):
        super().__init__()
        self.value, self.calls = value, 0

    def forward(self, pred, label):
        self.calls += 1
        return super().forward(pred, label) + (self.value if self.calls == 5 else 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(tmp_path, value):
    training = Training(tmp_path, 3, init=0, loss=SpoiledLoss(value))
    with pytest.raises(BundleError, match=f"the loss must be finite, got {value} in epoch 2, step 5; lower"):
        training.run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["network"].values())  # the epoch before


# --- seeds


def draws(seed, epochs, first_epoch=1, waste=0):
    """What each epoch draws from Python's, NumPy's and torch's generators."""
    drawn = []
    engine = Engine(lambda engine, batch: drawn.append((random.random(), np.random.rand(), torch.rand(1).item())))
    RandomSeedHandler(seed).attach(engine)
    for _ in range(waste):
        (random.random(), np.random.rand(), torch.rand(1))
    engine.state.epoch, engine.state.iteration = first_epoch - 1, (first_epoch - 1) * 2
    engine.state.max_epochs, engine.state.epoch_length = epochs, 2
    engine.run([0, 1])
    return drawn


def test_resumed_epochs_draw_the_numbers_they_would_have_drawn():
    whole = draws(7, epochs=4)
    assert draws(7, epochs=4, first_epoch=3, waste=5) == whole[4:]
    assert len(whole) == 8 and len(set(whole)) == 8


def test_seeds_differ_in_every_epoch():
    numbers = [number for seed in range(4) for number in draws(seed, epochs=5)]
    assert len(set(numbers)) == len(numbers)


def test_seeds_may_be_large():
    assert draws(2**40, epochs=1) == draws(2**40, epochs=1, waste=3)


# --- schedules


class Weights:
    alpha, beta, gamma, tau, other = 9.0, 9.0, 9.0, 9.0, 9.0


START = {"alpha": 0.4, "beta": 0.4, "gamma": 0.2, "tau": 0.2}
END = {"alpha": 0.8, "beta": 0.1, "gamma": 0.1, "tau": 0.5}


def test_weights_move_linearly_and_stop_before_the_end():
    weights, seen = Weights(), []
    engine = Engine(lambda engine, batch: seen.append((weights.alpha, weights.beta, weights.gamma, weights.tau)))
    LinearScheduleHandler(weights, START, END).attach(engine)
    engine.run([0], max_epochs=4)
    expected = [(0.4, 0.4, 0.2, 0.2), (0.5, 0.325, 0.175, 0.275), (0.6, 0.25, 0.15, 0.35), (0.7, 0.175, 0.125, 0.425)]
    for values, those in zip(seen, expected, strict=True):
        assert values == pytest.approx(those)
    assert weights.other == 9.0


@pytest.mark.parametrize(("epochs", "epoch"), [(20, 0), (20, 7), (20, 19), (1, 0)])
def test_each_epoch_s_weights_follow_from_its_number(epochs, epoch):
    weights, engine = Weights(), Engine(lambda engine, batch: None)
    engine.state.epoch, engine.state.max_epochs = epoch + 1, epochs
    LinearScheduleHandler(weights, START, END)(engine)
    for name in START:
        assert getattr(weights, name) == pytest.approx(START[name] + (END[name] - START[name]) * epoch / epochs)


@pytest.mark.parametrize(
    ("start", "end"), [({"alpha": 0}, {"beta": 1}), ({"alpha": 0}, {}), ({"delta": 0}, {"delta": 1})]
)
def test_refuses_schedules_of_other_attributes(start, end):
    with pytest.raises(ValueError, match="`start` and `end` must name the same attributes of Weights, got"):
        LinearScheduleHandler(Weights(), start, end)


# --- what the log says


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="scripts.training.handlers")
    return caplog


def test_logs_the_mean_loss_of_each_epoch(log):
    losses = iter([1.0, 2.0, 6.0, 0.5, 0.5, 0.5])
    engine = Engine(lambda engine, batch: [{"loss": torch.tensor(next(losses))}])
    LossHandler("classifier").attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    assert log.messages == [
        "classifier, epoch 1 of 2: loss 3.0000, 0:00 min, about 0:00 min left.",
        "classifier, epoch 2 of 2: loss 0.5000, 0:00 min.",
    ]


def test_the_time_left_of_a_resumed_training_is_judged_by_its_own_epochs(log, monkeypatch):
    """Resumed after epoch 8 of 10, the ninth takes a minute, and so will the last."""
    now = [0.0]
    monkeypatch.setattr("scripts.training.handlers.time.monotonic", lambda: now[0])

    def step(engine, batch):
        now[0] += 60
        return [{"loss": torch.tensor(1.0)}]

    engine = Engine(step)
    LossHandler("classifier").attach(engine)
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", 8))  # as ResumeHandler does
    engine.run([0], max_epochs=10)
    assert "epoch 9 of 10" in log.messages[0] and log.messages[0].endswith("about 1:00 min left.")


def test_logs_scores_but_no_matrices(log):
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = {"mean_iou": 0.71234, "confusion": torch.eye(2)}
    engine.state.epoch = 3
    ScoreLogHandler()(engine)
    assert log.messages == ["Epoch 3: mean_iou 0.7123"]


def test_logs_what_is_about_to_be_trained_and_how_long_it_will_take(log):
    layers = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 500, bias=False))
    layers[0].requires_grad_(False)
    engine = Engine(lambda engine, batch: None)
    engine.state.device = "cpu"
    StageSizeHandler("segmenter", layers, warmup_steps=2).attach(engine)
    engine.run(DataLoader(range(11), batch_size=4), max_epochs=2)
    size, time = log.messages
    assert "segmenter: 11 patches, 2 epochs of 3 steps, 1.5 million parameters, 0.5 of them trained, on cpu" in size
    assert "s per step: the segmenter will take about 0:00 min, validation not counted" in time


# --- losses that come late, as from a GPU


class LateCopy:
    """Copies that have arrived when ``LateCopy.arrived`` says so."""

    arrived = 0  # of all that were sent for
    sent = 0

    def __init__(self, tensor):
        self.value, self.number = tensor.clone(), LateCopy.sent
        LateCopy.sent += 1

    def is_there(self):
        return self.number < LateCopy.arrived

    def get(self):
        return self.value


def late_losses(monkeypatch, losses, folder=None, late=2):
    """A training with these losses, (epochs, steps), each of which arrives ``late`` steps after its own."""
    monkeypatch.setattr("scripts.training.handlers.HostCopy", LateCopy)
    LateCopy.arrived = LateCopy.sent = 0
    flat, saved = [loss for epoch in losses for loss in epoch], []

    def step(engine, batch):
        LateCopy.arrived = engine.state.iteration - late
        return [{"loss": torch.tensor(flat[engine.state.iteration - 1])}]

    engine = Engine(step)
    LossHandler("classifier", folder).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: saved.append(engine.state.epoch))
    return engine, saved, lambda: engine.run(losses[0], max_epochs=len(losses))


def test_late_losses_count_in_their_own_epoch(monkeypatch, log, tmp_path):
    _, _, run = late_losses(monkeypatch, [[1.0, 2.0, 6.0], [0.5, 0.5, 2.0]], tmp_path)
    run()
    means = [message.split(", 0:00 min")[0].split(": ")[1] for message in log.messages]
    assert means == ["loss 3.0000", "loss 1.0000"]
    curve = read_curves(tmp_path)["classifier_loss"]
    assert curve == [(1, 1.0), (2, 2.0), (3, 6.0), (4, 0.5), (5, 0.5), (6, 2.0)]


@pytest.mark.parametrize("step", [1, 3])
def test_nothing_of_an_epoch_is_kept_whose_losses_were_spoiled(monkeypatch, step):
    losses = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    losses[1][step - 1] = math.nan
    _, saved, run = late_losses(monkeypatch, losses)
    with pytest.raises(BundleError, match=f"finite, got nan in epoch 2, step {3 + step}; lower the learning"):
        run()
    assert saved == [1]


# --- averaged weights


def test_averages_are_ignite_s():
    torch.manual_seed(0)
    model, losses = network(), [torch.randn(4, 3, 4, 4) for _ in range(5)]
    ours, theirs = WeightAveragingHandler(model, 0.3), EMAHandler(model, 0.3, handle_buffers="update")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(engine, batch):
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()

    engine = Engine(step)
    ours.attach(engine)
    theirs.attach(engine, name="theirs")
    engine.run(losses)
    state, other = ours.averaged_network.state_dict(), theirs.ema_model.state_dict()
    torch.testing.assert_close(state, other)
    assert not torch.equal(state["0.weight"], model.state_dict()["0.weight"])
    assert state["1.num_batches_tracked"] == 5 and not ours.averaged_network.training


# --- gradient clipping


@pytest.mark.parametrize(("gradient", "max_norm", "factor"), [([3.0, 4.0], 1.0, 0.2), ([0.3, 0.4], 1.0, 1.0)])
def test_gradients_are_scaled_to_the_largest_norm_of_all_together(gradient, max_norm, factor):
    parameters = [nn.Parameter(torch.zeros(1)) for _ in gradient]
    optimizer = torch.optim.SGD([{"params": [parameter]} for parameter in parameters], lr=1.0)
    GradientClippingHandler(optimizer, max_norm).attach(Engine(lambda engine, batch: None))
    for parameter, value in zip(parameters, gradient):
        parameter.grad = torch.tensor([value])
    optimizer.step()
    for parameter, value in zip(parameters, gradient):
        assert parameter.item() == pytest.approx(-factor * value, rel=1e-5)


def test_the_configs_clip_gradients_that_are_no_longer_scaled(monkeypatch):
    monkeypatch.chdir(BUNDLE)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    parser = ConfigParser({"on_cuda": True, "amp": True})
    parser["fused_optimizer"] = read_json("configs/train.json")["fused_optimizer"]
    parameter = nn.Parameter(torch.zeros(2))
    fused = parser.get_parsed_content("fused_optimizer")
    optimizer = torch.optim.SGD([parameter], lr=1.0, fused=fused)
    GradientClippingHandler(optimizer, 5).attach(Engine(lambda engine, batch: None))
    scaler.scale((parameter * torch.tensor([0.3, 0.4])).sum()).backward()
    scaler.step(optimizer)
    assert parameter.tolist() == pytest.approx([-0.3, -0.4])


@pytest.mark.parametrize("max_norm", [0, -1, float("nan")])
def test_refuses_to_clip_to_nothing(max_norm):
    with pytest.raises(ValueError, match="`max_norm` must be above 0"):
        GradientClippingHandler(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), max_norm)
