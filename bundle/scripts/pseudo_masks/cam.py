"""Turn class activation maps (CAMs) into class scores: fusion of levels, gating and normalisation."""

from collections.abc import Sequence

import torch
from monai.inferers import SlidingWindowInferer
from torch import nn
from torch.nn import functional as F

from ..errors import BundleError
from ..runs.devices import to_device

WINDOWS_AT_A_TIME = 16
TIE = 1e-6  # by which scores are lowered that tie with another channel's
SHARPNESS = 10.0  # logits per score: CAMs have no scale of probability, and this makes a score of 1 beat 0 clearly


def combine_cams(
    cams: Sequence[torch.Tensor], size: Sequence[int], level_weights: Sequence[float], scaled: bool = False
) -> torch.Tensor:
    """Upsample CAMs bilinearly to the image's ``size`` (height, width) and sum them with ``level_weights``.

    Args:
        cams: one non-negative CAM (B, K, h_i, w_i) per level.
        size: height and width of the image in pixels.
        level_weights: one weight per level.
        scaled: whether to scale the map of each level and class to [0, 1] before they are summed.

    Returns:
        The combined CAM, (B, K, H, W).
    """
    if len(cams) != len(level_weights):
        raise BundleError(f"`level_weights` must have one weight per CAM ({len(cams)}), got {list(level_weights)}.")
    upsampled = (F.interpolate(cam, size=tuple(size), mode="bilinear", align_corners=False) for cam in cams)
    if scaled:
        upsampled = map(scale_each, upsampled)
    return sum(weight * cam for weight, cam in zip(level_weights, upsampled, strict=True))


def scale_each(cam: torch.Tensor) -> torch.Tensor:
    """Scale each map of ``cam``, (B, K, H, W), to [0, 1]; a constant map becomes 0 (SSHR)."""
    low, high = cam.amin(dim=(2, 3), keepdim=True), cam.amax(dim=(2, 3), keepdim=True)
    span = high - low
    constant = span <= 1e-5 * high  # upsampling a constant map rounds, and scaling would enlarge that
    return ((cam - low) / (span + 1e-8)).masked_fill(constant, 0)  # not a product: ONNX loses the 1e-8, and 0 / 0 stays


def balance_classes(
    cam: torch.Tensor, level_weights: Sequence[float], class_strengths: Sequence[Sequence[float]]
) -> torch.Tensor:
    """Divide the combined CAM of each class by its strength, the weighted sum of its strengths at all levels.

    Args:
        cam: combined CAM, (B, K, H, W).
        level_weights: the weights used to combine it.
        class_strengths: mean activation (levels, K); a class of strength 0 is left unchanged.
    """
    strengths = torch.tensor(level_weights).double() @ torch.tensor(class_strengths).double()
    if len(strengths) != cam.shape[1]:
        raise BundleError(f"`class_strengths` must have one column per class ({cam.shape[1]}), got {len(strengths)}.")
    strengths = torch.where(strengths > 0, strengths, 1).to(cam.dtype)
    return cam / to_device(strengths, cam.device)[:, None, None]


def present_classes(prob: torch.Tensor, threshold: float, label: torch.Tensor | None = None) -> torch.Tensor:
    """Which classes an image shows: those of its label, and where that is unknown, those of a high probability.

    Args:
        prob: class probabilities, (B, K) in [0, 1].
        threshold: in [0, 1]; a class whose label is unknown is present where ``prob > threshold``.
        label: true image-level labels, (B, K) of 0, 1 and NaN, unknown; ``None`` if all are unknown.

    Returns:
        (B, K) bool. An image of which no label is known and no class is probable gets its most probable one. (The
        published code fails in that case.) A label of zeros is taken at its word: none of these classes.
    """
    if not 0 <= threshold <= 1:
        raise BundleError(f"`threshold` must be in [0, 1], got {threshold}; use a probability, not a percentage.")
    present = prob > threshold
    undecided = ~present.any(dim=1, keepdim=True)
    if label is not None:
        label = to_device(label, prob.device)
        unknown = label.isnan()
        present = torch.where(unknown, present, label > 0)
        undecided = undecided & unknown.all(dim=1, keepdim=True)
    most_probable = F.one_hot(prob.argmax(dim=1), prob.shape[1]).bool()
    return present | undecided & most_probable


def gate_and_normalize(cam: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Scores of the classes an image shows, scaled to [0, 1] jointly over all classes and pixels of the image.

    Args:
        cam: combined CAM, (B, K, H, W), not negative.
        present: the gate, (B, K) bool or 0/1; absent classes are set to 0 before scaling.

    Returns:
        Scores (B, K, H, W) in [0, 1], and -inf for absent classes, so that argmax never selects them.
        A constant CAM gives zeros (NaN in the published code).
    """
    gate = present.to(torch.bool)[:, :, None, None]
    gated = cam * gate
    low, high = gated.amin(dim=(1, 2, 3), keepdim=True), gated.amax(dim=(1, 2, 3), keepdim=True)
    scores = (gated - low) / (high - low).clamp(min=torch.finfo(cam.dtype).tiny)
    return scores.masked_fill(~gate, -torch.inf)


class CAMSegmenter(nn.Module):
    """A trained CAM classifier as a segmentation network: its gated, normalised CAMs are the scores.

    Args:
        classifier: has ``cams(image)`` as ``CAMClassifier`` has.
        level_weights: weight of the shallow, the middle and the deepest CAM.
        threshold: class probability above which a class counts as present if there is no label.
        channel_order: for each output channel, the classifier's channel it comes from; ``None`` keeps their order.
        flips: average the CAMs over the image and its flips (horizontal, vertical, both). Published: off.
        scales: average the CAMs over these scales of the image. Published: 1 only.
        dtype: the classifier's autocast type: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        window: height and width in pixels of the patches the classifier was trained on. Larger images are processed in
            windows of this size that overlap by half, since what a patch classifier has learnt about context and tissue
            proportions does not hold for whole images. ``None`` processes every image as a whole.
        class_strengths: mean activation (levels, K) of each class in patches that show only that class, in the
            classifier's order (see ``class_balance``). The CAM of each class is divided by its strength, so that no
            tissue outgrows another merely because the classifier responds to it more strongly. ``None`` leaves the CAMs
            unchanged, as published. Without effect if ``scaled_levels``, which already makes all maps equally strong.
        scaled_levels: scale the CAM of each level and class to [0, 1] before they are combined, as SSHR does.
    """

    def __init__(
        self,
        classifier: nn.Module,
        level_weights: Sequence[float],
        threshold: float,
        channel_order: Sequence[int] | None = None,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
        dtype: str = "float32",
        window: Sequence[int] | None = None,
        class_strengths: Sequence[Sequence[float]] | None = None,
        scaled_levels: bool = False,
    ) -> None:
        super().__init__()
        if class_strengths is not None and len(class_strengths) != len(level_weights):
            raise BundleError(
                f"`class_strengths` must have one row per level ({len(level_weights)}), got {len(class_strengths)}; "
                "measure them with this classifier."
            )
        if not scales or min(scales) <= 0:
            raise BundleError(f"`scales` must be positive numbers such as [0.75, 1.0, 1.25], got {list(scales)}.")
        self.classifier = classifier
        self.level_weights = tuple(level_weights)
        self.threshold = threshold
        self.channel_order = None if channel_order is None else list(channel_order)
        self.mirrored_axes = [(), (3,), (2,), (2, 3)] if flips else [()]
        self.scales = tuple(scales)
        self.dtype = getattr(torch, dtype)
        self.window = None if window is None else tuple(window)
        self.class_strengths = None if scaled_levels else class_strengths
        self.scaled_levels = scaled_levels

    def _averaged(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Combined CAM (B, K, H, W) and class probabilities (B, K), averaged over scales and flips."""
        size = image.shape[2:]
        cam_sum, prob_sum, count = 0.0, 0.0, len(self.scales) * len(self.mirrored_axes)
        for scale in self.scales:
            scaled = image
            if scale != 1:
                scaled = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False, antialias=True)
            for axes in self.mirrored_axes:
                with torch.autocast(image.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                    cams, prob = self.classifier.cams(scaled.flip(axes) if axes else scaled)
                cam = combine_cams([cam.float() for cam in cams], size, self.level_weights, self.scaled_levels)
                cam_sum = cam_sum + (cam.flip(axes) if axes else cam)
                prob_sum = prob_sum + prob
        return cam_sum / count, prob_sum / count

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Score the tissues of ``image``, (B, 3, H, W) in [0, 1].

        Args:
            image: the patches.
            label: true image-level labels, (B, K) of 0, 1 and NaN, which gate the classes; where they are unknown, and
                for ``None`` everywhere, the predicted labels do (see ``present_classes``).

        Returns:
            Scores (B, K, H, W) in [0, 1], -inf for classes that the gate excludes: all of them, if the label is all 0.
            Scores tied with those of an earlier channel of the classifier are lowered by 1e-6, so that ties go to that
            one in any channel order. For images larger than ``window``, scores are means over windows, each with
            its own gate, in which a class that is not predicted counts as -1, below every score.
        """
        if self.window is None or all(side <= limit for side, limit in zip(image.shape[2:], self.window, strict=True)):
            return self._scores(image, label)
        inferer = SlidingWindowInferer(
            self.window, WINDOWS_AT_A_TIME, overlap=0.5, mode="gaussian", padding_mode="replicate"
        )

        def windows_scores(windows: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
            return self._scores(windows, None if own is None else own.expand(len(windows), -1)).clamp(min=-1)

        labels = [None] * len(image) if label is None else label.split(1)
        scores = torch.cat(
            [inferer(single, windows_scores, own) for single, own in zip(image.split(1), labels, strict=True)]
        )
        if label is None:
            return scores
        absent = to_device(label, scores.device)[:, self.channel_order or range(label.shape[1])] == 0
        return scores.masked_fill(absent[:, :, None, None], -torch.inf)

    def _scores(self, image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        """The scores (B, K, H, W) of ``image`` as a whole, see ``forward``."""
        cam, prob = self._averaged(image)
        if self.class_strengths is not None:
            cam = balance_classes(cam, self.level_weights, self.class_strengths)
        present = present_classes(prob, self.threshold, label)
        scores = gate_and_normalize(cam, present)
        if self.channel_order is None:
            return scores
        best, winner = scores.max(dim=1, keepdim=True)
        channels = torch.arange(scores.shape[1], device=scores.device)[:, None, None]
        scores = torch.where((scores == best) & (channels != winner), scores - TIE, scores)
        return torch.stack([scores[:, channel] for channel in self.channel_order], dim=1)


class CAMLogits(nn.Module):
    """The scores of a ``CAMSegmenter`` as logits: a network like any other, where there is no second stage.

    Args:
        cam_segmenter: maps images (B, 3, H, W) in [0, 1] to scores (B, K, H, W) in [0, 1] or -inf.
    """

    def __init__(self, cam_segmenter: nn.Module) -> None:
        super().__init__()
        self.cam_segmenter = cam_segmenter

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The logits (B, K, H, W) of ``image``, (B, 3, H, W) in [0, 1].

        Returns:
            Ten times the scores, and -10 for classes that the gate excludes. Means over the overlapping windows of an
            image then rank classes as the ``CAMSegmenter``'s own windows do; slides average probabilities.
        """
        return SHARPNESS * self.cam_segmenter(image).clamp(min=-1)
