"""Time the bundle against the plain implementations of ``baselines``.

    python tests/benchmarks/run.py [--device cuda] [ROW ...]

Each row is measured in one run, ours and plain in turn, by medians, after both gave the same values. Names of rows
choose some; without, all run (about 20 minutes on two cores).
"""

import argparse
import copy
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
sys.path[:0] = [str(BUNDLE), str(Path(__file__).parent)]

import baselines  # noqa: E402
import torch  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from timing import autocast, best_precision, in_turn, precision_of, seconds  # noqa: E402

from scripts.data.label_maps import label_map  # noqa: E402
from scripts.data.preparing.demo import make_demo_data  # noqa: E402
from scripts.evaluation.metrics import confusion_matrix, summary  # noqa: E402
from scripts.losses import AdaptiveNoiseAwareLoss, IntraInterClassLoss  # noqa: E402
from scripts.networks import Autocast  # noqa: E402
from scripts.pseudo_masks.cam import CAMSegmenter  # noqa: E402
from scripts.runs.stages import stage_config  # noqa: E402

METHODS = ("esfan", "ibdr")


def build(method, name, num_classes, *overlays):
    """A network of a method with random weights, but for batch norms that keep the activations in range."""
    parser = ConfigParser()
    parser.read_config(["configs/train.json", f"configs/method_{method}.json", *overlays])
    parser["num_classes"] = num_classes
    torch.manual_seed(0)
    return parser.get_parsed_content(name)


def compare(title, ours, plain, repeats, work="", device="cpu"):
    """Print the ratio of the medians of ``repeats`` turns each, and return them."""
    mine, theirs = in_turn(ours, plain, repeats, device)
    print(f"{title:<58} {mine * 1e3:9.1f} ms {theirs * 1e3:9.1f} ms {theirs / mine:6.2f}x {work}", flush=True)
    return mine, theirs


def step(network, loss, image, target):
    """A work that goes forward and backward."""

    def work():
        network.zero_grad()
        loss(network(image), target).backward()

    return work


def share(title, ours, bare, repeats, device="cpu"):
    """Print which part of the bare network's throughput ``ours`` reaches, by medians of turns, and return them."""
    mine, network = in_turn(ours, bare, repeats, device)
    print(
        f"{title:<58} {mine * 1e3:9.1f} ms {network * 1e3:9.1f} ms {network / mine:6.1%} of the network's", flush=True
    )
    return mine, network


def configured(overlays, device="cpu", **settings):
    """A parser of training's configs, for a device."""
    parser = ConfigParser()
    parser.read_config(["configs/train.json", *overlays])
    for name, value in {"device": f"$torch.device('{device}')", **settings}.items():
        parser[name] = value
    return parser


def cam_segmenter(method, classifier, classes, precision, device="cpu", overlays=(), size=224):
    """What the configs make of a trained classifier."""
    parser = configured([f"configs/method_{method}.json", *overlays], device, precision=precision, num_classes=classes)
    parser["trained_classifier"] = classifier
    parser["level_weights"], parser["threshold"] = [0.2, 0.3, 0.5], 0.5
    parser["cam_segmenter#channel_order"], parser["cam_segmenter#flips"] = None, False
    parser["patch_size"] = [size, size]
    return parser.get_parsed_content("cam_segmenter").eval()


def least_agreement(precision, device):
    """The share of equal pixels that masks of noise must have: on a GPU, float32 convolutions keep 10 bits (TF32)."""
    on_cpu = torch.device(device).type == "cpu"
    return (0.999 if precision == "float32" else 0.98) if on_cpu else 0.95


def cams(method, device="cpu", repeats=3, batch=8, size=224, overlays=()):
    """Stage 1: CAMs and masks of a batch, with the paper's networks.

    Returns:
        For each type the medians of ours and of the plain code in seconds, and the share of equal pixels.
    """
    background = method == "esfan"
    classes = 4 if background else 2
    classifier = build(method, "classifier_def", classes, *overlays).eval().to(device)
    torch.manual_seed(1)
    images, labels = torch.rand(batch, 3, size, size).to(device), torch.ones(batch, classes, device=device)

    def work(precision):
        segmenter = cam_segmenter(method, classifier, classes, precision, device, overlays, size)
        weights = segmenter.level_weights

        def run():
            with torch.inference_mode():
                return label_map(segmenter(images, labels), images, background)

        def plain():
            return baselines.plain_masks(classifier, images, labels, weights, background)

        return run, plain

    found = {}
    for precision in sorted({"float32", best_precision(device)}):
        ours, plain = work(precision)
        agreement = (ours().cpu().numpy() == plain()).mean()
        assert agreement > least_agreement(precision, device), f"{agreement:.3%} of the pixels equal"
        title = f"{method}: CAMs + masks, {size} px, {batch} images, {precision}"
        medians = compare(title, ours, plain, repeats, f"{agreement:.3%} of the pixels equal", device)
        found[precision] = (*medians, agreement)
    return found


def tolerance(device, exact):
    """The relative difference that two losses may have: on a GPU, convolutions keep 10 bits (TF32)."""
    return exact if torch.device(device).type == "cpu" else 10 * exact


def stage_1_step(device="cpu", repeats=3, batch=4, size=128):
    """Stage 1: a training step with the paper's networks, against the fusion blocks as they are written."""
    for method in METHODS:
        network = build(method, "classifier_def", 4).train().to(device)
        loss = configured([f"configs/method_{method}.json"]).get_parsed_content("classifier_loss")
        image, label = torch.rand(batch, 3, size, size).to(device), torch.ones(batch, 4, device=device)
        plain = baselines.with_plain_fusion(copy.deepcopy(network))
        torch.manual_seed(2)  # dropout
        mine = loss(network(image), label)
        torch.manual_seed(2)
        assert torch.allclose(mine, loss(plain(image), label), rtol=tolerance(device, 1e-4))
        precision = best_precision(device)
        fast = Autocast(network, precision)
        title = f"{method}: stage-1 step, {batch} x {size} px, {precision}"
        works = step(fast, loss, image, label), step(plain, loss, image, label)
        compare(title, *works, repeats, device=device)


def stage_2_step(device="cpu", repeats=3, batch=4, size=224):
    """Stage 2: a training step with the paper's networks; DPR with one encoder pass against two, and plain losses."""
    for method, classes in zip(METHODS, (4, 2)):
        network = build(method, "segmenter_def", classes).train().to(device)
        loss = configured([f"configs/method_{method}.json"], num_classes=classes).get_parsed_content("segmenter_loss")
        image, target = torch.rand(batch, 3, size, size), torch.randint(0, classes, (batch, 1, size, size))
        image, target = image.to(device), target.to(device)
        plain, plain_loss = baselines.PLAIN_STAGE_2[method]
        plain_network = copy.deepcopy(network).network
        for part in (network, plain_network):  # the values of both are the same without dropout
            for module in part.modules():
                module.eval() if isinstance(module, torch.nn.Dropout2d) else None
        mine = loss(network(image), target)
        theirs = plain_loss(plain(plain_network, image), target[:, 0])
        assert torch.allclose(mine, theirs, rtol=tolerance(device, 1e-3)), (mine, theirs)
        fast = Autocast(network, best_precision(device))

        def by_hand():
            plain_network.zero_grad()
            plain_loss(plain(plain_network, image), target[:, 0]).backward()

        title = f"{method}: stage-2 step, {batch} x {size} px, {best_precision(device)}"
        compare(title, step(fast, loss, image, target), by_hand, repeats, device=device)


def losses(device="cpu", repeats=9):
    """ANM and IICB, forward and backward."""
    torch.manual_seed(0)
    logits, target = torch.randn(16, 4, 224, 224).to(device), torch.randint(0, 4, (16, 224, 224)).to(device)

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
        compare(f"{name}, 16 x 4 x 224 x 224, forward + backward", work(mine), work(plain), repeats, device=device)


def data(device="cpu", repeats=5, patches=400, size=224):
    """Loading: the second epoch of the training loader against decoding the files."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(f"{folder}/demo", 0, size, num_train=patches, num_val=1, num_test=0)
        overlays = ["configs/lite.json", "configs/dataset_demo.json"]
        parser = configured(overlays, device, dataset_dir=f"{folder}/demo")
        parser = ConfigParser(stage_config(parser.get(), "train_classifier"))
        loader, prepare = (parser.get_parsed_content(f"train#{key}") for key in ("dataloader", "prepare_batch"))
        paths = [item["image"] for item in parser.get_parsed_content("training_images")]
        batch = parser["classifier_batch_size"]

        def plain():
            for start in range(0, len(paths) // batch * batch, batch):
                image = baselines.decode(paths[start : start + batch]).to(device)
                image.flip(2), image.flip(3)

        def ours():
            for item in loader:
                prepare(item, torch.device(device))

        compare(f"data: an epoch of {patches} patches of {size} px", ours, plain, repeats, device=device)
        whole, reading = patches / seconds(ours, device), patches / seconds(lambda: list(loader))
        print(f"    {whole:.0f} patches/s in this process, {reading:.0f} without augmentation")


def evaluation(device="cpu", repeats=5, images=24, size=448):
    """Scoring masks of a split: confusion matrices and mean IoU, against NumPy image by image."""
    torch.manual_seed(0)
    preds, trues = (torch.randint(0, 5, (images, 1, size, size)) for _ in range(2))

    on_device = [(pred.to(device), true.to(device)) for pred, true in zip(preds, trues)]

    def ours():
        confusion = sum(confusion_matrix(pred, true, 5) for pred, true in on_device)
        return summary(confusion.cpu(), list("abcde"), True)["mean_iou"]

    def plain():
        return baselines.plain_mean_iou(preds.numpy(), trues.numpy(), 5)

    assert abs(ours() - plain()) < 1e-6
    compare(f"evaluation: {images} masks of {size} px", ours, plain, repeats, device=device)


def pseudo_masks(method, device="cpu", images=16, size=224, repeats=3, batch=8, overlays=()):
    """Pseudo masks of a folder, reading and writing included, against the bare network on the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(f"{folder}/demo", 0, size, num_train=images, num_val=1, num_test=0)
        precision = best_precision(device)
        settings = {"precision": precision, "eval_batch_size": batch, "dataset_dir": f"{folder}/demo"}
        configs = [f"configs/method_{method}.json", *overlays, "configs/dataset_demo.json"]
        parser = configured(configs, device, output_dir=f"{folder}/run", backbone_weights="$None", **settings)
        parser["trained_classifier"] = parser.get_parsed_content("classifier_def").eval()
        parser["pseudo_masks#write"] |= {"_mode_": "callable"}
        write, turn = parser.get_parsed_content("pseudo_masks#write"), itertools.count()
        network = parser.get_parsed_content("cam_segmenter").classifier
        batches = torch.rand(images, 3, size, size).to(device).split(batch)

        def ours():
            write(mask_dir=f"{folder}/masks{next(turn)}")

        def bare():
            with torch.inference_mode(), autocast(device, precision):
                for part in batches:
                    network.cams(part)

        return share(f"{method}: pseudo masks of {images} patches, {precision}", ours, bare, repeats, device)


def inference(overlays, name, images, device="cpu", size=224, repeats=5):
    """Masks and overlays of a folder by ``inference.json``, against the bare network on the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(f"{folder}/demo", 0, size, num_train=1, num_val=1, num_test=images)
        parser = ConfigParser()
        parser.read_config(["configs/inference.json", *overlays, "configs/dataset_demo.json"])
        parser["dataset_dir"], parser["output_dir"] = f"{folder}/demo/test/img", f"{folder}/results"
        parser["device"] = f"$torch.device('{device}')"
        network = parser["trained_segmenter"] = parser.get_parsed_content("network_def").eval()
        parser["patch_size"] = [size, size]
        batches = torch.rand(images, 3, size, size).to(device).split(parser["eval_batch_size"])
        precision = precision_of(parser, device)
        parser.get_parsed_content("initialize")
        evaluator = parser.get_parsed_content("evaluator")

        def bare():
            with torch.inference_mode(), autocast(device, precision):
                for batch in batches:
                    network(batch.to(memory_format=torch.channels_last))

        title = f"{name}: inference on {images} images of {size} px, {precision}"
        return share(title, evaluator.run, bare, repeats, device)


def agreement(device="cpu", run="output/demo_esfan_lite"):
    """Masks of the demo's training patches, by the README's demo: plain float32 against the faster ways."""
    saved = json.loads(Path(run, "configs/train.json").read_text())
    parser = configured([], **saved | {"output_dir": run, "device": device})
    classifier = parser.get_parsed_content("trained_classifier").eval().to(device)
    images = [item["image"] for item in parser.get_parsed_content("training_images")]
    labels = torch.tensor([item["label"] for item in parser.get_parsed_content("training_images")])
    settings = ("level_weights", "threshold", "flips")
    settings = {name: parser.get_parsed_content(f"cam_segmenter#{name}") for name in settings}
    plain, masks = CAMSegmenter(classifier, **settings), {}
    ways = {"plain": plain, "float32": None, "bfloat16": None}
    for precision in ("float32", "bfloat16"):
        parser["precision"] = precision
        ways[precision] = parser.get_parsed_content("cam_segmenter")
    with torch.inference_mode():
        for name, segmenter in ways.items():
            parts = zip(range(0, len(images), 16), labels.split(16))
            batches = ((baselines.decode(images[start : start + 16]).to(device), label) for start, label in parts)
            masks[name] = torch.cat([label_map(segmenter(image, label), image, True) for image, label in batches])
    for name in ("float32", "bfloat16"):
        equal = (masks[name] == masks["plain"]).float().mean().item()
        print(f"demo, {len(images)} masks, {name} as configured against plain: {equal:.3%} of the pixels equal")


def memory(device="cpu", size=224):
    """Peak memory per image of a stage-1 training step of the paper's ESFAN classifier, from batches of 2 and 4."""
    for checkpointing in (False, True):
        peaks = {}
        for batch in (2, 4):
            code = MEMORY_OF_A_STEP.format(
                folder=Path(__file__).parent, checkpointing=checkpointing, batch=batch, size=size, device=device
            )
            peaks[batch] = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        per_image = (peaks[4] - peaks[2]) / 2 / 2**20
        print(
            f"esfan: stage-1 step, checkpointing {checkpointing!s:<5}: {per_image:.2f} GB per image of {size} px",
            end="",
        )
        print(f", {peaks[2] / 2**20 + 18 * per_image:.1f} GB for a batch of 20")


MEMORY_OF_A_STEP = """
import os, resource, sys
sys.path.insert(0, "{folder}")
from run import *
os.chdir(BUNDLE)
network = build("esfan", "classifier_def", 4).train().to("{device}")
network.backbone.checkpointing = {checkpointing}
loss = configured([]).get_parsed_content("classifier_loss")
image, label = torch.rand({batch}, 3, {size}, {size}).to("{device}"), torch.ones({batch}, 4, device="{device}")
step(network, loss, image, label)()
of_gpu = "{device}" != "cpu"
print(torch.cuda.max_memory_allocated() // 1024 if of_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


ROWS = {
    "losses": losses,
    "data": data,
    "stage_2_step": stage_2_step,
    "stage_1_step": stage_1_step,
    "cams_esfan": lambda device: cams("esfan", device),
    "cams_ibdr": lambda device: cams("ibdr", device),
    "evaluation": evaluation,
    "pseudo_masks_esfan": lambda device: pseudo_masks("esfan", device),
    "pseudo_masks_ibdr": lambda device: pseudo_masks("ibdr", device),
    "inference_lite": lambda device: inference(["configs/lite.json"], "lite", 64, device),
    "agreement": agreement,
    "memory": memory,
    "inference_paper": lambda device: inference([], "paper", 16, device),
}


def main():
    """Read the command line, and run the rows."""
    parser = argparse.ArgumentParser(description="Time the bundle against plain implementations of the same values.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {', '.join(ROWS)}; without, all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"there is no GPU for --device {options.device}")
    os.chdir(BUNDLE)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians: ours, plain, ratio")
    for row in options.rows or ROWS:
        ROWS[row](options.device)


if __name__ == "__main__":
    main()
