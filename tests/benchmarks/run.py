"""Time the bundle against the plain implementations of ``baselines``: python tests/benchmarks/run.py [ROW ...]

Each row is measured in one run, ours and plain in turn, by medians, after both gave the same values. Names of rows
choose some; without, all run (about 20 minutes on two cores).
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
sys.path.insert(0, str(BUNDLE))
os.chdir(BUNDLE)

import baselines  # noqa: E402
import torch  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402

from scripts.cam import CAMSegmenter, label_map  # noqa: E402
from scripts.demo import make_demo_data  # noqa: E402
from scripts.losses import AdaptiveNoiseAwareLoss, IntraInterClassLoss  # noqa: E402
from scripts.networks import Autocast  # noqa: E402

METHODS = ("esfan", "ibdr")


def build(method, name, num_classes, *overlays):
    """A network of a method with random weights, but for batch norms that keep the activations in range."""
    parser = ConfigParser()
    parser.read_config(["configs/train.json", f"configs/method_{method}.json", *overlays])
    parser["num_classes"] = num_classes
    torch.manual_seed(0)
    return parser.get_parsed_content(name)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(title, ours, plain, repeats, work=""):
    """Print the ratio of the medians of ``repeats`` turns each."""
    ours(), plain()  # warm up
    turns = [(seconds(ours), seconds(plain)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*turns))
    print(f"{title:<58} {mine * 1e3:9.1f} ms {theirs * 1e3:9.1f} ms {theirs / mine:6.2f}x {work}", flush=True)


def step(network, loss, image, target):
    """A work that goes forward and backward."""

    def work():
        network.zero_grad()
        loss(network(image), target).backward()

    return work


def cams(method, repeats=3, batch=8, size=224):
    """Stage 1: CAMs and masks of a batch, with the paper's networks."""
    background = method == "esfan"
    classes = 4 if background else 2
    classifier = build(method, "classifier_def", classes).eval().to(memory_format=torch.channels_last)
    torch.manual_seed(1)
    images = torch.rand(batch, 3, size, size)
    labels = torch.ones(batch, classes)
    weights = (0.2, 0.3, 0.5)

    def ours(dtype="bfloat16"):
        with torch.inference_mode():
            segmenter = CAMSegmenter(classifier, weights, 0.5, dtype=dtype)
            return label_map(segmenter(images, labels), images, background)

    def plain():
        return baselines.plain_masks(classifier, images, labels, weights, background)

    agreement = (ours("float32").numpy() == plain()).mean()
    assert agreement > 0.999, agreement
    compare(f"{method}: CAMs + masks, {size} px, {batch} images, bfloat16", ours, plain, repeats)
    compare(f"{method}: CAMs + masks, {size} px, {batch} images, float32", lambda: ours("float32"), plain, repeats)


def stage_1_step(repeats=3, batch=4, size=128):
    """Stage 1: a training step with the paper's networks."""
    for method in METHODS:
        network = build(method, "classifier_def", 4).train()
        parser = ConfigParser()
        parser.read_config(["configs/train.json", f"configs/method_{method}.json"])
        loss = parser.get_parsed_content("classifier_loss")
        image, label = torch.rand(batch, 3, size, size), torch.ones(batch, 4)
        fast = network.to(memory_format=torch.channels_last)
        ours = step(Autocast(fast, "bfloat16"), loss, image, label)
        compare(f"{method}: stage-1 step, bfloat16 against float32", ours, step(fast, loss, image, label), repeats)


def stage_2_step(repeats=3, batch=4, size=128):
    """Stage 2: a training step of DPR with one encoder pass against two."""
    network = build("ibdr", "segmenter_def", 2).train().network
    loss = IntraInterClassLoss()
    image, target = torch.rand(batch, 3, size, size), torch.randint(0, 2, (batch, 1, size, size))

    def paths(forward):
        def work():
            network.zero_grad()
            main, auxiliary = forward(image)
            (loss(main, target) + 0.4 * loss(auxiliary, target)).backward()

        return work

    compare(
        "ibdr: stage-2 step, one encoder pass",
        paths(network),
        paths(lambda x: baselines.plain_dpr(network, x)),
        repeats,
    )


def losses(repeats=9):
    """ANM and IICB, forward and backward."""
    torch.manual_seed(0)
    logits, target = torch.randn(16, 4, 224, 224), torch.randint(0, 4, (16, 224, 224))

    def work(loss):
        def run():
            values = logits.clone().requires_grad_()
            result = loss(values, target)
            result.backward()
            return result.item(), values.grad

        return run

    for name, mine, plain in (
        ("ANM", AdaptiveNoiseAwareLoss(), baselines.plain_anm),
        ("IICB", IntraInterClassLoss(), baselines.plain_iicb),
    ):
        (a, ga), (b, gb) = work(mine)(), work(plain)()
        assert abs(a - b) < 1e-5 * abs(b) and (ga - gb).abs().max() < 0.1 * gb.abs().max(), (a, b)
        compare(f"{name}, 16 x 4 x 224 x 224, forward + backward", work(mine), work(plain), repeats)


def data(repeats=5, patches=400, size=224):
    """Loading: the second epoch of the training loader against decoding the files."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(f"{folder}/demo", 0, size, num_train=patches, num_val=1, num_test=0)
        parser = ConfigParser()
        parser.read_config(["configs/train.json", "configs/lite.json", "configs/dataset_demo.json"])
        parser["dataset_dir"], parser["device"] = f"{folder}/demo", "cpu"
        loader = parser.get_parsed_content("classification#dataloader")
        prepare = parser.get_parsed_content("classification#prepare_batch")
        paths = [item["image"] for item in parser.get_parsed_content("classification#items")]
        batch = parser["classification#batch_size"]

        def plain():
            for start in range(0, len(paths) // batch * batch, batch):
                image = baselines.decode(paths[start : start + batch])
                image.flip(2), image.flip(3)

        def ours():
            for item in loader:
                prepare(item, torch.device("cpu"))

        compare(f"data: an epoch of {patches} patches of {size} px", ours, plain, repeats)
        whole, reading = patches / seconds(ours), patches / seconds(lambda: list(loader))
        print(f"    {whole:.0f} patches/s in this process, {reading:.0f} without augmentation")


ROWS = {
    "losses": losses,
    "data": data,
    "stage_2_step": stage_2_step,
    "stage_1_step": stage_1_step,
    "cams_esfan": lambda: cams("esfan"),
    "cams_ibdr": lambda: cams("ibdr"),
}

if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians: ours, plain, ratio")
    for row in sys.argv[1:] or ROWS:
        ROWS[row]()
