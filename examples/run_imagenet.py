#!/usr/bin/env python
"""Train an image classifier sparsely, from scratch or from a pretrained one: ImageNet-1k, a data set of the Hub, or folders.

    python examples/run_imagenet.py examples/configs/vit_b16_imagenet_90.yaml --output_dir out/vit

It takes the options of transformers' run_image_classification.py, those of `SRigLConfig`, and ``--dense`` for the
baseline. Without --model_name_or_path the model is new: --model_type vit or deit and --config_overrides say what it is.
On several GPUs: torchrun --nproc_per_node 8 examples/run_imagenet.py ..., or accelerate launch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from datasets import DatasetDict
from datasets import Image as ImageFeature
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedModel,
    TrainingArguments,
    ViTImageProcessor,
)

from glue_metrics import load_metric
from image_folders import check_images, load_folders, open_image
from images import Collator, ImageArguments, Transform, cross_entropy, to_mode, transforms
from labels import order_of_labels, warn_of_other_classes
from reading import choose, load_data
from shared import (
    NewModelArguments,
    Parser,
    SparseArguments,
    UserError,
    explained,
    finish,
    make_trainer,
    run,
    start,
    train,
)

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class ModelArguments(NewModelArguments):
    """Which model to start from, or to make."""

    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Accept a head of another size."})


@dataclass
class DataArguments:
    """Which images. Folders hold one folder for each class."""

    dataset_name: str | None = field(default=None, metadata={"help": "On the Hub: ILSVRC/imagenet-1k, ..."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that dataset."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder with a folder of images for each class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same for validation."})
    train_val_split: float = field(default=0.15, metadata={"help": "Share held out if there is no validation data."})
    check_images: bool = field(
        default=True, metadata={"help": "Read every image of the folders once before training, to find damaged ones."}
    )
    image_column_name: str = field(default="image", metadata={"help": "The column with the images."})
    label_column_name: str = field(default="label", metadata={"help": "The column with the classes."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many validation images."})

    def __post_init__(self) -> None:
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"train_val_split must be between 0 and 1, got {self.train_val_split}")


def main(arguments: Sequence[str]) -> None:
    parser = Parser((ModelArguments, DataArguments, ImageArguments, SparseArguments, TrainingArguments))
    model_args, data_args, image_args, sparse_args, args = parser.parse(arguments)
    if not (args.do_train or args.do_eval):
        raise UserError("nothing to do: give --do_train or --do_eval")
    data = load(model_args, data_args, args)
    labels = names_of_labels(data, data_args)
    for split in (
        data if isinstance(next(iter(data.values())).features[data_args.image_column_name], ImageFeature) else ()
    ):
        data[split] = data[split].cast_column(data_args.image_column_name, ImageFeature(decode=False))
    checkpoint = start(args)

    if data_args.check_images and data_args.dataset_name is None:
        with args.main_process_first(desc="checking images"):
            for split in data if args.should_save else ():
                check_images(data[split].rename_columns({data_args.image_column_name: "image"}), split)
    model = load_model(model_args, labels, is_trained=args.do_train)
    number_of = [model.config.label2id[label] for label in labels]  # the model may have its own numbers for them
    model.accepts_loss_kwargs = False
    processor = load_processor(model_args, model.config)
    size = processor.size.get("height") or processor.size["shortest_edge"]
    training, evaluation = transforms(image_args, size, processor.image_mean, processor.image_std)
    channels = len(processor.image_mean)

    def prepare(rows: dict[str, list], transform: Transform, is_training: bool) -> dict[str, list]:
        cells = [open_image(cell, "of the data set") for cell in rows[data_args.image_column_name]]
        images = [transform(to_mode(image, channels)) for image in cells]
        classes = [number_of[label] for label in rows[data_args.label_column_name]]
        return {"pixel_values": images, "label": classes, "training": [is_training] * len(images)}

    train_data = eval_data = None
    if args.do_train:
        train_data = choose(data["train"].shuffle(seed=args.seed), data_args.max_train_samples, "training")
        train_data = train_data.with_transform(partial(prepare, transform=training, is_training=True))
    if args.do_eval:
        eval_data = choose(data["validation"].shuffle(seed=args.seed), data_args.max_eval_samples, "validation")
        eval_data = eval_data.with_transform(partial(prepare, transform=evaluation, is_training=False))
    metric = load_metric(None, regression=False)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return metric.compute(predictions=np.argmax(logits, axis=-1), references=prediction.label_ids)

    args.remove_unused_columns = False  # the images would be
    args.average_tokens_across_devices = False  # `cross_entropy` is a mean over images, which processes have alike
    trainer = make_trainer(
        sparse_args,
        model,
        args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        compute_metrics=compute_metrics,
        compute_loss_func=cross_entropy,
        processing_class=processor,
        data_collator=Collator(model.config.num_labels, image_args, args.label_smoothing_factor),
    )
    trainer.loss_is_scaled_for_ga = False  # so that the Trainer divides by the accumulation steps
    if args.do_train:
        train(trainer, checkpoint, len(train_data))
    if args.do_eval:
        metrics = trainer.evaluate() | {"eval_samples": len(eval_data)}
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    finish(
        trainer,
        finetuned_from=model_args.model_name_or_path,
        tasks="image-classification",
        dataset=data_args.dataset_name,
        tags=["image-classification", "vision"],
    )


def load(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> DatasetDict:
    """Splits train and validation, from the Hub or from folders, the images not decoded yet."""
    folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
    folders = {split: folder for split, folder in folders.items() if folder is not None}
    if data_args.dataset_name is not None:
        data = load_data(data_args.dataset_name, data_args.dataset_config_name, **model_args.download())
    elif folders:
        data = load_folders(folders)
        if data_args.image_column_name != "image":
            data = data.rename_column("image", data_args.image_column_name)
    else:
        raise UserError("no data: give --dataset_name, or --train_dir and --validation_dir")
    if args.do_train and "train" not in data:
        raise UserError(f"--do_train needs training images, but there is only: {', '.join(data)}")
    if args.do_eval and "validation" not in data:
        if "train" not in data:
            raise UserError(f"--do_eval needs validation images, but there is only: {', '.join(data)}")
        with explained(ValueError, before=f"--train_val_split {data_args.train_val_split}: "):
            parts = data["train"].train_test_split(data_args.train_val_split, seed=args.seed)
        data["train"], data["validation"] = parts["train"], parts["test"]
    return data


def names_of_labels(data: DatasetDict, data_args: DataArguments) -> list[str]:
    """The classes in order.

    Raises:
        UserError: there is no column with images or classes, or one class only.
    """
    rows = data["train"] if "train" in data else data["validation"]
    for name, option in ((data_args.image_column_name, "image"), (data_args.label_column_name, "label")):
        if name not in rows.column_names:
            found = ", ".join(rows.column_names)
            raise UserError(f"the data has no column '{name}' (--{option}_column_name), only: {found}")
    feature = rows.features[data_args.label_column_name]
    if not hasattr(feature, "names"):
        found = getattr(feature, "dtype", type(feature).__name__)
        raise UserError(f"the column '{data_args.label_column_name}' must hold classes, found {found}")
    if "train" in data and len(feature.names) == 1:
        raise UserError(f"the data has one class only, {feature.names[0]!r}: nothing to learn")
    return feature.names


def load_model(model_args: ModelArguments, labels: list[str], is_trained: bool = True) -> PreTrainedModel:
    """A trained model with a head for `labels`, or a new one.

    A model that knows these classes keeps its numbers for them; one that is not trained now must know them.
    """
    with explained(OSError, ValueError, RuntimeError, KeyError, AttributeError, before="the model cannot be made: "):
        config = model_args.configuration()
        if model_args.model_name_or_path is None:
            config.id2label = dict(enumerate(labels))
            config.label2id = order_of_labels({}, labels)
            logger.info("A new model, with random weights.")
            return AutoModelForImageClassification.from_config(config, trust_remote_code=model_args.trust_remote_code)
        if is_trained:
            warn_of_other_classes(config.label2id, labels)
            order = order_of_labels(config.label2id, labels)
            config.num_labels = len(labels)
            config.label2id, config.id2label = order, {number: label for label, number in order.items()}
        else:
            unknown = [label for label in labels if label not in config.label2id]
            if unknown:
                raise ValueError(
                    f"the data has the classes {', '.join(unknown)}, it knows {', '.join(config.label2id)}"
                )
        return AutoModelForImageClassification.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **model_args.hub(),
        )


def load_processor(model_args: ModelArguments, config: PretrainedConfig) -> Any:
    """What size and normalisation a model wants; a new one gets ImageNet's."""
    if model_args.model_name_or_path is not None:
        with explained(OSError, ValueError, before="the image processor cannot be loaded: "):
            return AutoImageProcessor.from_pretrained(model_args.model_name_or_path, cache_dir=model_args.cache_dir)
    mean, std = ((0.5,), (0.5,)) if config.num_channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    size = {"height": config.image_size, "width": config.image_size}
    return ViTImageProcessor(
        size=size, image_mean=list(mean), image_std=list(std), do_convert_rgb=config.num_channels == 3
    )


if __name__ == "__main__":
    run(main)
