"""Time the bundle against the plain implementations of ``baselines``: python tests/benchmarks/run.py [ROW ...]

Each row is measured in one run, ours and plain in turn, by medians, after both gave the same values. Names of rows
choose some; without, all run (about 20 minutes on two cores).
"""

import copy
import itertools
import json
import os
import statistics
import subprocess
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
from scripts.metrics import confusion_matrix, summary  # noqa: E402
from scripts.networks import Autocast, has_bfloat16  # noqa: E402

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


def best_precision():
    """bfloat16 where the CPU has instructions for it, elsewhere it is emulated and slower than float32."""
    return "bfloat16" if has_bfloat16() else "float32"


def share(title, ours, bare, repeats):
    """Print which part of the bare network's throughput ``ours`` reaches, by medians of turns."""
    ours(), bare()  # warm up
    turns = [(seconds(ours), seconds(bare)) for _ in range(repeats)]
    mine, network = (statistics.median(column) for column in zip(*turns))
    print(
        f"{title:<58} {mine * 1e3:9.1f} ms {network * 1e3:9.1f} ms {network / mine:6.1%} of the network's", flush=True
    )


def configured(overlays, **settings):
    """A parser of training's configs, for the CPU."""
    parser = ConfigParser()
    parser.read_config(["configs/train.json", *overlays])
    for name, value in {"device": "cpu", **settings}.items():
        parser[name] = value
    return parser


def cam_segmenter(method, classifier, classes, precision):
    """What the configs make of a trained classifier."""
    parser = configured([f"configs/method_{method}.json"], precision=precision, num_classes=classes)
    parser["trained_classifier"] = classifier
    parser["level_weights"], parser["threshold"] = [0.2, 0.3, 0.5], 0.5
    parser["cam_segmenter#channel_order"], parser["patch_size"] = None, [224, 224]
    return parser.get_parsed_content("cam_segmenter").eval()


def cams(method, repeats=3, batch=8, size=224):
    """Stage 1: CAMs and masks of a batch, with the paper's networks."""
    background = method == "esfan"
    classes = 4 if background else 2
    classifier = build(method, "classifier_def", classes).eval()
    torch.manual_seed(1)
    images, labels = torch.rand(batch, 3, size, size), torch.ones(batch, classes)

    def work(precision):
        segmenter = cam_segmenter(method, classifier, classes, precision)

        def run():
            with torch.inference_mode():
                return label_map(segmenter(images, labels), images, background)

        return run

    def plain():
        return baselines.plain_masks(classifier, images, labels, (0.2, 0.3, 0.5), background)

    for precision in sorted({"float32", best_precision()}):
        ours = work(precision)
        agreement = (ours().numpy() == plain()).mean()
        assert agreement > (0.999 if precision == "float32" else 0.98), agreement
        title = f"{method}: CAMs + masks, {size} px, {batch} images, {precision}"
        compare(title, ours, plain, repeats, f"{agreement:.3%} of the pixels equal")


def stage_1_step(repeats=3, batch=4, size=128):
    """Stage 1: a training step with the paper's networks, against the fusion blocks as they are written."""
    for method in METHODS:
        network = build(method, "classifier_def", 4).train()
        loss = configured([f"configs/method_{method}.json"]).get_parsed_content("classifier_loss")
        image, label = torch.rand(batch, 3, size, size), torch.ones(batch, 4)
        plain = baselines.with_plain_fusion(copy.deepcopy(network))
        torch.manual_seed(2)  # dropout
        mine = loss(network(image), label)
        torch.manual_seed(2)
        assert torch.allclose(mine, loss(plain(image), label), rtol=1e-4)
        fast = Autocast(network, best_precision())
        title = f"{method}: stage-1 step, {batch} x {size} px, {best_precision()}"
        compare(title, step(fast, loss, image, label), step(plain, loss, image, label), repeats)


def stage_2_step(repeats=3, batch=4, size=224):
    """Stage 2: a training step with the paper's networks; DPR with one encoder pass against two, and plain losses."""
    for method, classes in zip(METHODS, (4, 2)):
        network = build(method, "segmenter_def", classes).train()
        loss = configured([f"configs/method_{method}.json"], num_classes=classes).get_parsed_content("segmenter_loss")
        image, target = torch.rand(batch, 3, size, size), torch.randint(0, classes, (batch, 1, size, size))
        plain, plain_loss = baselines.PLAIN_STAGE_2[method]
        plain_network = copy.deepcopy(network).network
        for part in (network, plain_network):  # the values of both are the same without dropout
            for module in part.modules():
                module.eval() if isinstance(module, torch.nn.Dropout2d) else None
        mine = loss(network(image), target)
        theirs = plain_loss(plain(plain_network, image), target[:, 0])
        assert torch.allclose(mine, theirs, rtol=1e-3), (mine, theirs)
        fast = Autocast(network, best_precision())

        def by_hand():
            plain_network.zero_grad()
            plain_loss(plain(plain_network, image), target[:, 0]).backward()

        title = f"{method}: stage-2 step, {batch} x {size} px, {best_precision()}"
        compare(title, step(fast, loss, image, target), by_hand, repeats)


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


def evaluation(repeats=5, images=24, size=448):
    """Scoring masks of a split: confusion matrices and mean IoU, against NumPy image by image."""
    torch.manual_seed(0)
    preds, trues = (torch.randint(0, 5, (images, 1, size, size)) for _ in range(2))

    def ours():
        return summary(sum(confusion_matrix(p, t, 5) for p, t in zip(preds, trues)), list("abcde"), True)["mean_iou"]

    def plain():
        return baselines.plain_mean_iou(preds.numpy(), trues.numpy(), 5)

    assert abs(ours() - plain()) < 1e-6
    compare(f"evaluation: {images} masks of {size} px", ours, plain, repeats)


def pseudo_masks(method, images=16, size=224, repeats=3):
    """Pseudo masks of a folder, reading and writing included, against the bare network on the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(f"{folder}/demo", 0, size, num_train=images, num_val=1, num_test=0)
        settings = {"precision": best_precision(), "eval_batch_size": 8, "dataset_dir": f"{folder}/demo"}
        overlays = [f"configs/method_{method}.json", "configs/dataset_demo.json"]
        parser = configured(overlays, output_dir=f"{folder}/run", backbone_weights="$None", **settings)
        parser["trained_classifier"] = parser.get_parsed_content("classifier_def").eval()
        parser["pseudo_masks#write"] |= {"_mode_": "callable"}
        write, turn = parser.get_parsed_content("pseudo_masks#write"), itertools.count()
        network = parser.get_parsed_content("cam_segmenter").classifier
        batches = torch.rand(images, 3, size, size).split(8)

        def ours():
            write(mask_dir=f"{folder}/masks{next(turn)}")

        def bare():
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, best_precision() == "bfloat16"):
                for batch in batches:
                    network.cams(batch)

        share(f"{method}: pseudo masks of {images} patches, {best_precision()}", ours, bare, repeats)


def inference(overlays, name, images, size=224, repeats=5):
    """Masks and overlays of a folder by ``inference.json``, against the bare network on the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(f"{folder}/demo", 0, size, num_train=1, num_val=1, num_test=images)
        parser = ConfigParser()
        parser.read_config(["configs/inference.json", *overlays, "configs/dataset_demo.json"])
        parser["dataset_dir"], parser["output_dir"] = f"{folder}/demo/test/img", f"{folder}/results"
        parser["device"] = "cpu"
        network = parser["trained_segmenter"] = parser.get_parsed_content("network_def").eval()
        parser["patch_size"] = [size, size]
        batches = torch.rand(images, 3, size, size).split(parser["eval_batch_size"])
        parser.get_parsed_content("initialize")
        evaluator = parser.get_parsed_content("evaluator")

        def bare():
            with torch.inference_mode():
                for batch in batches:
                    network(batch.to(memory_format=torch.channels_last))

        share(f"{name}: inference on {images} images of {size} px, float32", evaluator.run, bare, repeats)


def agreement(run="output/demo_esfan_lite"):
    """Masks of the demo's training patches, by the README's run: plain float32 against the faster ways."""
    parser = configured([], **json.loads(Path(run, "configs/train.json").read_text()) | {"output_dir": run})
    parser["device"] = "cpu"
    classifier = parser.get_parsed_content("trained_classifier").eval()
    images = [item["image"] for item in parser.get_parsed_content("classification#items")]
    labels = torch.tensor([item["label"] for item in parser.get_parsed_content("classification#items")])
    settings = ("level_weights", "threshold", "flips", "scales")
    settings = {name: parser.get_parsed_content(f"cam_segmenter#{name}") for name in settings}
    plain, masks = CAMSegmenter(classifier, **settings), {}
    ways = {"plain": plain, "float32": None, "bfloat16": None}
    for precision in ("float32", "bfloat16"):
        parser["precision"] = precision
        ways[precision] = parser.get_parsed_content("cam_segmenter")
    with torch.inference_mode():
        for name, segmenter in ways.items():
            parts = zip(range(0, len(images), 16), labels.split(16))
            batches = ((baselines.decode(images[start : start + 16]), label) for start, label in parts)
            masks[name] = torch.cat([label_map(segmenter(image, label), image, True) for image, label in batches])
    for name in ("float32", "bfloat16"):
        equal = (masks[name] == masks["plain"]).float().mean().item()
        print(f"demo, {len(images)} masks, {name} as configured against plain: {equal:.3%} of the pixels equal")


def memory(size=224):
    """Peak memory per image of a stage-1 training step of the paper's ESFAN classifier, from batches of 2 and 4."""
    for checkpointing in (False, True):
        peaks = {}
        for batch in (2, 4):
            code = MEMORY_OF_A_STEP.format(folder=Path(__file__).parent, checkpointing=checkpointing, batch=batch)
            code = code.replace("SIZE", str(size))
            peaks[batch] = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        per_image = (peaks[4] - peaks[2]) / 2 / 2**20
        print(
            f"esfan: stage-1 step, checkpointing {checkpointing!s:<5}: {per_image:.2f} GB per image of {size} px",
            end="",
        )
        print(f", {peaks[2] / 2**20 + 18 * per_image:.1f} GB for a batch of 20")


MEMORY_OF_A_STEP = """
import resource, sys
sys.path.insert(0, "{folder}")
from run import *
network = build("esfan", "classifier_def", 4).train()
network.backbone.checkpointing = {checkpointing}
loss = configured([]).get_parsed_content("classifier_loss")
step(network, loss, torch.rand({batch}, 3, SIZE, SIZE), torch.ones({batch}, 4))()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


ROWS = {
    "losses": losses,
    "data": data,
    "stage_2_step": stage_2_step,
    "stage_1_step": stage_1_step,
    "cams_esfan": lambda: cams("esfan"),
    "cams_ibdr": lambda: cams("ibdr"),
    "evaluation": evaluation,
    "pseudo_masks_esfan": lambda: pseudo_masks("esfan"),
    "pseudo_masks_ibdr": lambda: pseudo_masks("ibdr"),
    "inference_lite": lambda: inference(["configs/lite.json"], "lite", 64),
    "agreement": agreement,
    "memory": memory,
    "inference_paper": lambda: inference([], "paper", 16),
}

if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians: ours, plain, ratio")
    for row in sys.argv[1:] or ROWS:
        ROWS[row]()
