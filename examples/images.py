"""Images to tensors: crops, RandAugment, mixup and cutmix. With torchvision where it is installed, with Pillow where not."""

from __future__ import annotations

import importlib.util
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger("shared")

Transform = Callable[[Image.Image], Tensor]


@dataclass
class ImageArguments:
    """What happens to an image before the model sees it. The defaults are those of ImageNet trainings."""

    min_scale: float = field(
        default=0.08, metadata={"help": "A training crop covers at least this share of the image."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability that a training image is mirrored."})
    rand_augment: int | None = field(default=None, metadata={"help": "Strength of RandAugment, 0 to 30, 2 operations."})
    crop_ratio: float = field(default=0.875, metadata={"help": "Share of the side that evaluation keeps (224 of 256)."})
    mixup: float = field(default=0.0, metadata={"help": "Mix pairs of images with this alpha (arXiv 1710.09412)."})
    cutmix: float = field(
        default=0.0, metadata={"help": "Or patches of them (arXiv 1905.04899), either half the time."}
    )

    def __post_init__(self) -> None:
        for name in ("min_scale", "crop_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must be in [0, 1], got {self.horizontal_flip}")
        if self.rand_augment is not None and not 0 <= self.rand_augment <= 30:
            raise ValueError(f"rand_augment must be in 0 to 30, got {self.rand_augment}")


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Any image, palette, CMYK, 16 bit or with transparency (on white), as RGB, or L for one channel."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def transforms(
    options: ImageArguments, size: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Transform, Transform]:
    """For training and for evaluation: an image to a normalised (channels, size, size) tensor."""
    if importlib.util.find_spec("torchvision") is not None:
        logger.info("Images are transformed by torchvision.")
        return _with_torchvision(options, size, mean, std)
    logger.info("Images are transformed by Pillow; torchvision, if installed, is used instead.")

    def training(image: Image.Image) -> Tensor:
        image = random_resized_crop(image, size, options.min_scale)
        if random.random() < options.horizontal_flip:
            image = ImageOps.mirror(image)
        if options.rand_augment is not None:
            image = rand_augment(image, options.rand_augment)
        return to_tensor(image, mean, std)

    def evaluation(image: Image.Image) -> Tensor:
        return to_tensor(center_crop(image, size, options.crop_ratio), mean, std)

    return training, evaluation


def _with_torchvision(
    options: ImageArguments, size: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Transform, Transform]:
    from torchvision.transforms import v2

    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=list(mean), std=list(std))]
    augment = [] if options.rand_augment is None else [v2.RandAugment(num_ops=2, magnitude=options.rand_augment)]
    crop = v2.RandomResizedCrop(size, scale=(options.min_scale, 1.0))
    training = v2.Compose([crop, v2.RandomHorizontalFlip(options.horizontal_flip), *augment, *last])
    evaluation = v2.Compose([v2.Resize(round(size / options.crop_ratio)), v2.CenterCrop(size), *last])
    return training, evaluation


def random_resized_crop(image: Image.Image, size: int, min_scale: float) -> Image.Image:
    """A crop of a random share of the area, from `min_scale` to 1, and a shape from 3:4 to 4:3, at size x size."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(min_scale, 1)
        shape = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return center_crop(image, size, 1.0)


def center_crop(image: Image.Image, size: int, ratio: float) -> Image.Image:
    """The middle square whose side is `ratio` of the shorter side, at size x size."""
    side = ratio * min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(channels, height, width), normalised."""
    pixels = torch.tensor(np.asarray(image), dtype=torch.float32) / 255
    pixels = pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


# Each takes the image and a strength in [-1, 1]; the ranges are torchvision's.
_OPERATIONS: list[Callable[[Image.Image, float], Image.Image]] = [
    lambda image, _: image,
    lambda image, m: _affine(image, 1, 0.3 * m, 0, 0, 1, 0),
    lambda image, m: _affine(image, 1, 0, 0, 0.3 * m, 1, 0),
    lambda image, m: _affine(image, 1, 0, 150 / 331 * m * image.width, 0, 1, 0),
    lambda image, m: _affine(image, 1, 0, 0, 0, 1, 150 / 331 * m * image.height),
    lambda image, m: image.rotate(30 * m, Image.Resampling.BILINEAR),
    lambda image, m: ImageEnhance.Brightness(image).enhance(1 + 0.9 * m),
    lambda image, m: ImageEnhance.Color(image).enhance(1 + 0.9 * m),
    lambda image, m: ImageEnhance.Contrast(image).enhance(1 + 0.9 * m),
    lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * m),
    lambda image, m: ImageOps.posterize(image, 8 - round(4 * abs(m))),
    lambda image, m: ImageOps.solarize(image, round(255 * (1 - abs(m)))),
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
]


def rand_augment(image: Image.Image, magnitude: int, operations: int = 2) -> Image.Image:
    """Random operations of one strength (Cubuk et al., arXiv 1909.13719)."""
    for operation in random.choices(_OPERATIONS, k=operations):
        image = operation(image, magnitude / 30 * random.choice((-1, 1)))
    return image


class Collator:
    """Rows to a batch: pixel_values (n, channels, h, w), and labels: (n,) classes for evaluation, (n, classes) for training.

    Args:
        classes: how many. options: mixup and cutmix. smoothing: of the training labels.
    """

    def __init__(self, classes: int, options: ImageArguments, smoothing: float) -> None:
        self.classes, self.options, self.smoothing = classes, options, smoothing

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        pixels, labels = (
            torch.stack([row["pixel_values"] for row in rows]),
            torch.tensor([row["label"] for row in rows]),
        )
        if not rows[0]["training"]:
            return {"pixel_values": pixels, "labels": labels}
        targets = functional.one_hot(labels, self.classes).float()
        targets = targets * (1 - self.smoothing) + self.smoothing / self.classes
        ways = [way for way in (mixup, cutmix) if getattr(self.options, way.__name__) > 0]
        if ways:
            way = random.choice(ways)
            pixels, targets = way(pixels, targets, getattr(self.options, way.__name__))
        return {"pixel_values": pixels, "labels": targets}


def mixup(pixels: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Each image and its target blended with the one before it in the batch, by a share drawn from Beta(alpha, alpha)."""
    share = random.betavariate(alpha, alpha)
    return pixels.lerp(pixels.roll(1, 0), share), targets.lerp(targets.roll(1, 0), share)


def cutmix(pixels: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """A box of each image replaced by that of the one before it; targets mixed by the area of the box."""
    height, width = pixels.shape[-2:]
    side = math.sqrt(random.betavariate(alpha, alpha)) / 2
    y, x = random.randrange(height), random.randrange(width)
    top, bottom = max(0, round(y - side * height)), min(height, round(y + side * height))
    left, right = max(0, round(x - side * width)), min(width, round(x + side * width))
    mixed = pixels.clone()
    mixed[..., top:bottom, left:right] = pixels.roll(1, 0)[..., top:bottom, left:right]
    return mixed, targets.lerp(targets.roll(1, 0), (bottom - top) * (right - left) / (height * width))


def cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The mean loss of a micro-batch, from classes (n,) or target probabilities (n, classes)."""
    return functional.cross_entropy(outputs["logits"], labels)
