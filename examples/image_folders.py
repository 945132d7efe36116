"""Folders with a folder of images for each class: which images there are, of which class, and whether they can be read."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from shared import UserError, one_line

logger = logging.getLogger("shared")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}


def load_folders(folders: Mapping[str, str]) -> DatasetDict:
    """Split -> rows with an image (its path) and a label, the class of the outermost folder it is in.

    The classes are those of the training folder; of the validation folder if there is no other.

    Raises:
        UserError: a folder is none, holds no image or no folder of images for each class; there is one class only, or
            one to validate that is not trained.
    """
    files = {split: images_by_class(folder, f"--{split}_dir") for split, folder in folders.items()}
    names = list(files.get("train", files.get("validation", {})))
    if "train" in files and len(names) == 1:
        raise UserError(
            f"--train_dir holds one class only, {names[0]!r}: nothing to learn; found in {folders['train']}"
        )
    unknown = [name for name in files.get("validation", {}) if name not in names]
    if unknown:
        raise UserError(
            f"--validation_dir has images of {', '.join(unknown)}, which --train_dir has not; it has {', '.join(names)}"
        )
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=names)})
    data = DatasetDict()
    for split, classes in files.items():
        numbers = {name: number for number, name in enumerate(names)}
        paths = [(path, numbers[name]) for name, images in classes.items() for path in images]
        columns = {"image": [path for path, _ in paths], "label": [label for _, label in paths]}
        data[split] = Dataset.from_dict(columns, features=features)
    return data


def images_by_class(folder: str, option: str) -> dict[str, list[str]]:
    """Class -> its images, however deep they lie in the class's folder; what is hidden or no image is left out.

    Raises:
        UserError: it is no folder, holds no image in a folder, or its folders are splits.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{option} is not a folder: {folder}")
    classes, left = {}, []
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            left.append(str(path))
            continue
        images = []
        for file in _files_below(path):
            (images if file.lower().endswith(SUFFIXES) else left).append(file)
        if images:
            classes[path.name] = images
        else:
            logger.warning(f"{path} holds no image: it is no class.")
    if not classes:
        raise UserError(f"{option} must hold a folder of images for each class, found no image in {folder}")
    if {name.lower() for name in classes} <= _SPLITS:
        raise UserError(
            f"{option} {folder} holds {', '.join(classes)}, which look like parts of the data and not like classes: give one "
            "of them, and another one to --validation_dir"
        )
    if left:
        logger.warning(f"{len(left)} files are no images in a folder of a class, and left out, such as {left[0]}.")
    return classes


def _files_below(folder: Path) -> list[str]:
    """Sorted; what is hidden is left out, links are followed."""
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(place, name) for name in names if not name.startswith(".")]
    return sorted(files)


def open_image(cell: Any, what: str) -> Image.Image:
    """An image of a row, upright: as `datasets` holds it undecoded (path, bytes), or decoded already.

    Raises:
        UserError: it cannot be read whole; the message names its file, or `what`.
    """
    if isinstance(cell, Image.Image):
        return cell
    path, content = cell["path"], cell["bytes"]
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:  # whatever it is that a damaged file provokes in a decoder
        reason = (
            "it is empty" if content is None and os.path.isfile(path) and not os.path.getsize(path) else one_line(error)
        )
        raise UserError(f"the image {path or what} cannot be read: {reason}") from error


def check_images(rows: Dataset, what: str) -> None:
    """Decode every image once: a damaged one is found before the training and not in its midst.

    Raises:
        UserError: there is one; all of them are counted and the first few named.
    """

    def problem(row: dict[str, Any]) -> str | None:
        try:
            open_image(row["image"], what)
        except UserError as error:
            return str(error)
        return None

    logger.info(f"Reading {len(rows)} {what} images once, to find damaged ones (--check_images false: not).")
    with ThreadPool() as pool:  # decoders let other threads run
        problems = [text for text in pool.imap(problem, rows, chunksize=64) if text is not None]
    if problems:
        more = f" (and {len(problems) - 1} more of the {what} images)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; remove it, or --check_images false to find out in training")
