"""Random augmentation of whole batches.

Batches are augmented in the main process, on the device, with random numbers from torch's global CPU generator: with
one seed per epoch (``RandomSeedHandler``) a resumed run matches an uninterrupted one, for any number of loader
workers. The random numbers, a few per image, are copied to the device without synchronising with it.
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
    """Randomly flip each image of a batch, and its mask if the label is one, horizontally and vertically.

    Args:
        horizontal: probability of a left-right flip.
        vertical: probability of an up-down flip.
    """

    def __init__(self, horizontal: float = 0.5, vertical: float = 0.5) -> None:
        self.probabilities = {-1: horizontal, -2: vertical}  # by tensor axis

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Flip ``image``, (B, 3, H, W); ``label`` is (B, K) and unchanged, or masks (B, 1, H, W) and flipped too."""
        for axis, probability in self.probabilities.items():
            chosen = to_device(torch.rand(len(image), 1, 1, 1) < probability, image.device)
            image = torch.where(chosen, image.flip(axis), image)
            if label is not None and label.ndim == image.ndim:
                label = torch.where(chosen, label.flip(axis), label)
        return image, label


class RandomTranspose:
    """Randomly transpose each image of a batch, and its mask; with flips, this gives all rotations by 90 degrees.

    Batches of non-square images are not changed, since a transposed image would not fit its batch.

    Args:
        probability: fraction of images that are transposed.
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transpose ``image``, (B, 3, H, W); ``label`` is (B, K) and unchanged, or masks (B, 1, H, W)."""
        if image.shape[2] != image.shape[3]:
            return image, label
        chosen = to_device(torch.rand(len(image), 1, 1, 1) < self.probability, image.device)
        image = torch.where(chosen, image.mT, image)
        if label is not None and label.ndim == image.ndim:
            label = torch.where(chosen, label.mT, label)
        return image, label


class RandomCutMix:
    """Paste a rectangle of another image, with its mask, into images of a batch.

    CutMix (Yun et al., ICCV 2019) for segmentation, as in French et al., "Semi-supervised semantic segmentation needs
    strong, varied perturbations" (BMVC 2020). MONAI's ``CutMix`` uses one corner for all images, a fixed batch size
    and its own random numbers, which a resumed run would not reproduce.

    Args:
        probability: fraction of images that are pasted into.
        sides: shortest and longest side of a rectangle, as fractions of the image's sides, in (0, 1].
    """

    def __init__(self, probability: float = 0.5, sides: tuple[float, float] = (0.3, 0.8)) -> None:
        if not 0 < sides[0] <= sides[1] <= 1:
            raise BundleError(f"`sides` must be two fractions in (0, 1], the smaller first, got {sides}.")
        self.probability = probability
        self.sides = tuple(sides)

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix ``image``, (B, 3, H, W), and ``label``, masks (B, 1, H, W).

        Raises:
            BundleError: if the labels are not masks: the image-level label of a rectangle is unknown.
        """
        if label is None or label.ndim != image.ndim:
            raise BundleError("`label` must be masks, which CutMix needs; leave `RandomCutMix` out of stage 1.")
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
    """Stain augmentation: randomly scale the haematoxylin, eosin and residual (DAB) of each image of a batch.

    Colours are unmixed in optical density with the stain vectors of Ruifrok and Johnston (scikit-image's ``rgb2hed``),
    each stain's amount is multiplied by a factor from U(1 - ``strength``, 1 + ``strength``), and the stains are mixed
    again, as in Tellez et al., "Whole-Slide Mitosis Detection in H&E Breast Histology Using PHH3 as a Reference"
    (2018). White stays white.

    Args:
        strength: largest relative change, in [0, 1).
        probability: fraction of images that are changed.
    """

    def __init__(self, strength: float = 0.3, probability: float = 1.0) -> None:
        if not 0 <= strength < 1:
            raise BundleError(f"`strength` must be in [0, 1), got {strength}; 0.3 varies stains by up to 30 %.")
        self.strength = strength
        self.probability = probability
        self.unmix = torch.tensor(hed_from_rgb, dtype=torch.float32)  # row vectors of densities to those of stains
        self.mix = torch.tensor(rgb_from_hed, dtype=torch.float32)

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Vary ``image``, (B, 3, H, W) float in [0, 1]; ``label`` is unchanged."""
        batch = len(image)
        factors = 1 + (2 * torch.rand(batch, 3) - 1) * self.strength * (torch.rand(batch, 1) < self.probability)
        change = self.unmix @ torch.diag_embed(factors) @ self.mix  # (B, 3, 3), for row vectors of densities
        density = -torch.log(image.clamp(min=1 / 255)).flatten(2)  # (B, 3, H * W)
        density = to_device(change.mT.to(image.dtype), image.device) @ density
        return torch.exp(-density).clamp(max=1).view_as(image), label


class RandomGaussianBlur:
    """Blur each image of a batch with a Gaussian whose standard deviation is drawn from U(0, ``max_sigma_px``).

    Args:
        probability: fraction of images that are blurred.
        max_sigma_px: largest standard deviation in pixels.
    """

    def __init__(self, probability: float = 0.5, max_sigma_px: float = 1.0) -> None:
        self.probability = probability
        self.max_sigma_px = max_sigma_px

    def __call__(self, image: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Blur ``image``, (B, 3, H, W) float; ``label`` is unchanged."""
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
        spatial: called in order with the images, (B, 3, H, W) uint8, and the labels; pixels are moved while each value
            takes one byte.
        intensity: called afterwards with the images in [0, 1] and the labels.
    """

    def __init__(self, spatial: Sequence[BatchTransform] = (), intensity: Sequence[BatchTransform] = ()) -> None:
        self.spatial = tuple(spatial)
        self.intensity = tuple(intensity)

    def __call__(
        self, batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **to_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the images, (B, 3, H, W) float in [0, 1], and labels, if any, of ``batch``, whose images are uint8."""
        non_blocking = non_blocking and torch.device(device).type != "mps"  # MPS may read a tensor after it is freed
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
