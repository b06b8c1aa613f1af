"""Random augmentation of whole batches.

It works on the batch in the main process, on the device, and draws from torch's global generator, on the CPU:
with a seed for each epoch (``RandomSeedHandler``) a resumed run repeats an uninterrupted one, on any number of loader
workers. What is drawn, a few numbers per image, goes to the device without waiting for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from skimage.color import hed_from_rgb, rgb_from_hed
from torch.nn import functional as F

from ..errors import BundleError
from ..runs.devices import to_device

BatchTransform = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor | None]]


class RandomFlip:
    """Mirror each image of a batch, and its mask if the label is one, horizontally and vertically.

    Args:
        horizontal: probability of a left-right flip.
        vertical: probability of an up-down flip.
    """

    def __init__(self, horizontal: float = 0.5, vertical: float = 0.5) -> None:
        self.probabilities = {-1: horizontal, -2: vertical}  # by tensor axis

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Flip ``image``, (B, 3, H, W); ``label`` is (B, K) and left alone, or masks (B, 1, H, W) and flipped too."""
        for axis, probability in self.probabilities.items():
            chosen = to_device(torch.rand(len(image), 1, 1, 1) < probability, image.device)
            image = torch.where(chosen, image.flip(axis), image)
            if label is not None and label.ndim == image.ndim:
                label = torch.where(chosen, label.flip(axis), label)
        return image, label


class RandomTranspose:
    """Exchange height and width of each image of a batch, and of its mask: with flips, all turns by 90 degrees.
    Images that are not square stay as they are, since they share a batch.

    Args:
        probability: share of images.
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transpose ``image``, (B, 3, H, W); ``label`` is (B, K) and left alone, or masks (B, 1, H, W)."""
        if image.shape[2] != image.shape[3]:
            return image, label
        chosen = to_device(torch.rand(len(image), 1, 1, 1) < self.probability, image.device)
        image = torch.where(chosen, image.mT, image)
        if label is not None and label.ndim == image.ndim:
            label = torch.where(chosen, label.mT, label)
        return image, label


class RandomCutMix:
    """Paste a rectangle of another image of the batch, with its mask, into images of a batch.

    CutMix (Yun et al., ICCV 2019) for segmentation, as in French et al., "Semi-supervised semantic segmentation needs
    strong, varied perturbations" (BMVC 2020). MONAI's ``CutMix`` has one corner for all images, one size of batches,
    and random numbers of its own, which a resumed run would not repeat.

    Args:
        probability: share of images that are pasted into.
        sides: shortest and longest side of a rectangle, as shares of the image's sides, in (0, 1].
    """

    def __init__(self, probability: float = 0.5, sides: tuple[float, float] = (0.3, 0.8)) -> None:
        if not 0 < sides[0] <= sides[1] <= 1:
            raise BundleError(f"`sides` must be two shares in (0, 1], the shorter first, got {sides}.")
        self.probability = probability
        self.sides = tuple(sides)

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix ``image``, (B, 3, H, W), and ``label``, masks (B, 1, H, W).

        Raises:
            BundleError: if the labels are not masks: a rectangle's image-level label is not known.
        """
        if label is None or label.ndim != image.ndim:
            raise BundleError("images can be mixed with masks as labels alone; leave `RandomCutMix` out of stage 1.")
        batch, _, height, width = image.shape
        shortest, longest = self.sides
        inside = to_device(torch.rand(batch, 1, 1, 1) < self.probability, image.device)
        for axis, length in ((2, height), (3, width)):
            side = length * (shortest + (longest - shortest) * torch.rand(batch, 1, 1, 1))
            first = (length - side) * torch.rand(batch, 1, 1, 1)
            first, last = to_device(torch.stack([first, first + side]), image.device)
            position = torch.arange(length, device=image.device)
            position = position.view(-1, 1) if axis == 2 else position
            inside = inside & (position >= first) & (position < last)
        other = to_device(torch.randperm(batch), image.device)
        return torch.where(inside, image[other], image), torch.where(inside, label[other], label)


class RandomStain:
    """Vary the stains of each image of a batch: the amounts of haematoxylin, eosin and residual (DAB) are scaled.

    Colours are unmixed in optical density by the stain vectors of Ruifrok and Johnston (scikit-image's ``rgb2hed``),
    each stain's amount is multiplied by a factor from U(1 - ``strength``, 1 + ``strength``), and mixed again, as in
    Tellez et al., "Whole-Slide Mitosis Detection in H&E Breast Histology Using PHH3 as a Reference" (2018). White stays
    white.

    Args:
        strength: largest relative change, in [0, 1).
        probability: share of images that are changed.
    """

    def __init__(self, strength: float = 0.3, probability: float = 1.0) -> None:
        if not 0 <= strength < 1:
            raise BundleError(f"`strength` must lie in [0, 1), got {strength}; 0.3 varies stains by up to 30 %.")
        self.strength = strength
        self.probability = probability
        self.unmix = torch.tensor(hed_from_rgb, dtype=torch.float32)  # rows of densities to rows of stains
        self.mix = torch.tensor(rgb_from_hed, dtype=torch.float32)

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Vary ``image``, (B, 3, H, W) float in [0, 1]; ``label`` is left alone."""
        batch = len(image)
        factors = 1 + (2 * torch.rand(batch, 3) - 1) * self.strength * (torch.rand(batch, 1) < self.probability)
        change = self.unmix @ torch.diag_embed(factors) @ self.mix  # (B, 3, 3), of rows of densities
        density = -torch.log(image.clamp(min=1 / 255)).flatten(2)  # (B, 3, H * W)
        density = to_device(change.mT.to(image.dtype), image.device) @ density
        return torch.exp(-density).clamp(max=1).view_as(image), label


class RandomGaussianBlur:
    """Blur each image of a batch with a Gaussian whose standard deviation is drawn from U(0, ``max_sigma_px``).

    Args:
        probability: share of images that are blurred.
        max_sigma_px: largest standard deviation in pixels.
    """

    def __init__(self, probability: float = 0.5, max_sigma_px: float = 1.0) -> None:
        self.probability = probability
        self.max_sigma_px = max_sigma_px

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Blur ``image``, (B, 3, H, W) float; ``label`` is left alone."""
        batch, channels, height, width = image.shape
        chosen = torch.rand(batch) < self.probability
        sigma = (torch.rand(batch) * self.max_sigma_px * chosen).clamp(min=1e-3)  # 1e-3 px: the identity
        radius = max(1, round(4 * self.max_sigma_px))
        offsets = torch.arange(-radius, radius + 1)
        kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)  # (B, 2 r + 1)
        kernel = to_device((kernel / kernel.sum(dim=1, keepdim=True)).to(image.dtype), image.device)
        kernel = kernel.repeat_interleave(channels, dim=0)[:, None, None]  # (B * 3, 1, 1, 2 r + 1)
        blurred = image.reshape(1, batch * channels, height, width)
        blurred = F.pad(blurred, [radius] * 4, mode="replicate")
        blurred = F.conv2d(blurred, kernel, groups=batch * channels)
        blurred = F.conv2d(blurred, kernel.transpose(2, 3), groups=batch * channels)
        return blurred.reshape(image.shape), label


class PrepareBatch:
    """A MONAI engine's ``prepare_batch``: move a batch to the device, augment its images and scale them to [0, 1].

    Args:
        spatial: called in order with the images as they come, (B, 3, H, W) uint8, and the labels: what moves pixels
            does so while they take one byte.
        intensity: called after it with the images in [0, 1] and the labels.
    """

    def __init__(self, spatial: Sequence[BatchTransform] = (), intensity: Sequence[BatchTransform] = ()) -> None:
        self.spatial = tuple(spatial)
        self.intensity = tuple(intensity)

    def __call__(
        self, batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **to_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The images, (B, 3, H, W) float in [0, 1], and the labels, if any, of ``batch``, whose images are uint8."""
        non_blocking = non_blocking and torch.device(device).type != "mps"  # which may read a tensor after it is gone
        image = batch["image"].to(device, non_blocking=non_blocking, **to_kwargs)
        label = batch.get("label")
        if label is not None:
            label = label.to(device, non_blocking=non_blocking)
        for transform in self.spatial:
            image, label = transform(image, label)
        image = image / 255  # float32
        for transform in self.intensity:
            image, label = transform(image, label)
        return image, label
