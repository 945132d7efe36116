#!/usr/bin/env python
"""Fine-tune a model for sequence classification sparsely, on a GLUE task or on csv or json files of your own.

It takes the options of transformers' script of the same name, those of `SRigLConfig`, and ``--dense`` for the baseline:

    python examples/run_glue.py examples/configs/glue.yaml --model_name_or_path google-bert/bert-base-uncased \\
        --task_name mrpc --output_dir out/mrpc

The first argument may be a .json or .yaml file with options. See examples/README.md for commands with their results.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PretrainedConfig,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from glue_metrics import GLUE_TASKS, load_metric
from shared import (
    HubArguments,
    Parser,
    SparseArguments,
    UserError,
    check_file,
    choose,
    explained,
    finish,
    load_data,
    make_trainer,
    run,
    start,
    train,
)
from teachers import TeacherArguments, teaching

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ModelArguments(HubArguments):
    """Which model, configuration and tokenizer to start from."""

    model_name_or_path: str = field(metadata={"help": "A model on the Hub, or its folder."})
    config_name: str | None = field(default=None, metadata={"help": "A configuration other than the model's."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "A tokenizer other than the model's."})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Accept a head of another size."})


@dataclass
class DataArguments:
    """Which sentences, and what becomes of them."""

    task_name: str | None = field(default=None, metadata={"help": "A GLUE task: " + ", ".join(GLUE_TASKS)})
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset on the Hub, instead of a task."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that dataset."})
    train_file: str | None = field(default=None, metadata={"help": "csv or json; labels in the column `label`."})
    validation_file: str | None = field(default=None, metadata={"help": "csv or json with the same columns."})
    test_file: str | None = field(default=None, metadata={"help": "csv or json; it may lack the labels."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer inputs are cut at this many tokens."})
    pad_to_max_length: bool = field(default=False, metadata={"help": "Pad all to --max_seq_length, not to the batch."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again, even if it was done before."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many validation rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use only so many test rows."})

    def __post_init__(self) -> None:
        if self.task_name is not None:
            self.task_name = self.task_name.lower()
            if self.task_name not in GLUE_TASKS:
                raise ValueError(f"unknown task '{self.task_name}', --task_name must be one of {', '.join(GLUE_TASKS)}")

    def files(self) -> dict[str, str]:
        """Split -> path, of the files given."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: path for split, path in files.items() if path is not None}


def main(arguments: Sequence[str]) -> None:
    parser = Parser((ModelArguments, TeacherArguments, DataArguments, SparseArguments, TrainingArguments))
    model_args, teacher_args, data_args, sparse_args, args = parser.parse(arguments)
    if not (args.do_train or args.do_eval or args.do_predict):
        raise UserError("nothing to do: give --do_train, --do_eval or --do_predict")
    data = load(model_args, data_args)
    # A column of numbers with a fraction is a regression; anything else are classes.
    labels = names_of_labels(data, data_args.task_name) if "train" in data else None
    checkpoint = start(args)

    hub = model_args.hub()
    with explained(OSError, ValueError, RuntimeError, before="the model cannot be loaded: "):
        config = AutoConfig.from_pretrained(model_args.config_name or model_args.model_name_or_path, **hub)
        if "train" not in data:
            labels = names_in_model(config)
        config.num_labels = 1 if labels is None else len(labels)
        config.finetuning_task = data_args.task_name
        tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or model_args.model_name_or_path, **hub)
        model = AutoModelForSequenceClassification.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **hub,
        )
    if labels is not None:
        order = order_of_labels(model.config.label2id, labels)
        model.config.label2id = order
        model.config.id2label = {number: label for label, number in order.items()}
    model.accepts_loss_kwargs = False  # these heads average over a micro-batch, whatever the accumulation

    first, second = columns(data, data_args.task_name)
    is_named = hasattr(next(iter(data.values())).features.get("label"), "names")
    length = min(data_args.max_seq_length, tokenizer.model_max_length)

    def prepare(rows: dict[str, list]) -> dict[str, Any]:
        sentences = (rows[first],) if second is None else (rows[first], rows[second])
        padding = "max_length" if data_args.pad_to_max_length else False
        result = tokenizer(*sentences, padding=padding, max_length=length, truncation=True)
        if "label" in rows:
            result["labels"] = [number_of(label) for label in rows["label"]]
        return result

    def number_of(label: Any) -> float:
        if labels is None:
            return float(label)
        if is_named:  # GLUE's own labels are numbers with names; -1 stands for a hidden label
            return order[labels[label]] if label >= 0 else -1
        if str(label) not in order:
            raise UserError(f"the label {label!r} is none of those trained on: {', '.join(order)}")
        return order[str(label)]

    with args.main_process_first(desc="tokenizing"):
        features = {
            split: rows.map(
                prepare,
                batched=True,
                load_from_cache_file=not data_args.overwrite_cache,
                remove_columns=rows.column_names,
                desc=f"Tokenizing {split}",
            )
            for split, rows in data.items()
        }

    validation = "validation_matched" if data_args.task_name == "mnli" else "validation"
    train_data = split_of(features, "train", "--do_train", data_args.max_train_samples) if args.do_train else None
    eval_data = split_of(features, validation, "--do_eval", data_args.max_eval_samples) if args.do_eval else None
    metric = load_metric(data_args.task_name, regression=labels is None)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        guesses = guess(prediction.predictions, regression=labels is None)
        result = metric.compute(predictions=guesses, references=prediction.label_ids)
        if len(result) > 1:
            result["combined_score"] = float(np.mean(list(result.values())))
        return result

    trainer = make_trainer(
        sparse_args,
        model,
        args,
        teaching=teaching(AutoModelForSequenceClassification, teacher_args, model, model_args),
        train_dataset=train_data,
        eval_dataset=eval_data,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=default_data_collator if data_args.pad_to_max_length else DataCollatorWithPadding(tokenizer),
    )
    if args.do_train:
        train(trainer, checkpoint, len(train_data))
    if args.do_eval:
        evaluate_all(trainer, features, eval_data, data_args)
    if args.do_predict:
        predict_all(trainer, features, data_args, order if labels is not None else None)
    task = data_args.task_name
    finish(
        trainer,
        finetuned_from=model_args.model_name_or_path,
        tasks="text-classification",
        language="en" if task else None,
        dataset_tags="glue" if task else None,
        dataset_args=task,
        dataset=f"GLUE {task.upper()}" if task else data_args.dataset_name,
    )


def load(model_args: ModelArguments, data_args: DataArguments) -> DatasetDict:
    """The splits there are, from the Hub or from files."""
    hub = model_args.download()
    if data_args.task_name is not None:
        return load_data("nyu-mll/glue", data_args.task_name, **hub)
    if data_args.dataset_name is not None:
        return load_data(data_args.dataset_name, data_args.dataset_config_name, **hub)
    files = data_args.files()
    if not files:
        raise UserError("no data: give --task_name, --dataset_name, or --train_file and --validation_file")
    for split, path in files.items():
        check_file(path, f"--{split}_file", (".csv", ".json", ".jsonl"))
    suffixes = {Path(path).suffix for path in files.values()}
    if len(suffixes) > 1:
        raise UserError(f"the data files must all be csv or all be json, got {', '.join(sorted(suffixes))}")
    return load_data("csv" if suffixes == {".csv"} else "json", data_files=files, cache_dir=model_args.cache_dir)


def names_of_labels(data: DatasetDict, task: str | None) -> list[str] | None:
    """The classes of the training data in order, None for a regression.

    Raises:
        UserError: there is no column `label`, or it has empty fields.
    """
    if "label" not in data["train"].column_names:
        raise UserError(f"the training data has no column 'label', only: {', '.join(data['train'].column_names)}")
    feature = data["train"].features["label"]
    if task == "stsb" or feature.dtype in ("float32", "float64"):
        return None
    if hasattr(feature, "names"):
        return feature.names
    labels = data["train"].unique("label")
    if None in labels:
        raise UserError("the column 'label' of the training data has empty fields")
    return [str(label) for label in sorted(labels)]


def names_in_model(config: PretrainedConfig) -> list[str] | None:
    """The classes a model was trained on, None if for a regression: what counts where there is no training data."""
    return None if config.num_labels == 1 else [config.id2label[number] for number in range(config.num_labels)]


def order_of_labels(trained: dict[str, int], labels: list[str]) -> dict[str, int]:
    """Label -> its number: a model's own numbering if it was trained with the same labels, else theirs."""
    theirs = {name.lower(): number for name, number in trained.items()}
    if sorted(theirs) == sorted(label.lower() for label in labels):
        return {label: theirs[label.lower()] for label in labels}
    return {label: number for number, label in enumerate(labels)}


def columns(data: DatasetDict, task: str | None) -> tuple[str, str | None]:
    """The columns with the one or two sentences: the task's, `sentence1` and `sentence2`, or the first with text."""
    if task is not None:
        return GLUE_TASKS[task]
    rows = data["train"] if "train" in data else next(iter(data.values()))
    if {"sentence1", "sentence2"} <= set(rows.column_names):
        return "sentence1", "sentence2"
    texts = [name for name in rows.column_names if name != "label" and rows.features[name].dtype.endswith("string")]
    if not texts:
        raise UserError(f"the data has no column with sentences, only: {', '.join(rows.column_names)}")
    return texts[0], texts[1] if len(texts) > 1 else None


def split_of(features: dict[str, Dataset], split: str, option: str, limit: int | None) -> Dataset:
    """The rows of a split, all or the first `limit`."""
    if split not in features:
        raise UserError(f"{option} needs {split} data, but there is only: {', '.join(features)}")
    return choose(features[split], limit, split)


def guess(predictions: Any, regression: bool) -> np.ndarray:
    """(n,) values of a regression, or classes, from (n, classes) logits."""
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    return np.squeeze(logits, axis=-1) if regression else np.argmax(logits, axis=-1)


def evaluate_all(trainer: Trainer, features: dict[str, Dataset], eval_data: Dataset, data_args: DataArguments) -> None:
    """Metrics of the validation data to the log and eval_results.json; MNLI has two validation sets."""
    metrics = trainer.evaluate(eval_data)
    if data_args.task_name == "mnli":
        mismatched = choose(features["validation_mismatched"], data_args.max_eval_samples, "validation")
        metrics |= {f"{name}_mm": value for name, value in trainer.evaluate(mismatched).items()}
    metrics["eval_samples"] = len(eval_data)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


def predict_all(
    trainer: Trainer, features: dict[str, Dataset], data_args: DataArguments, order: dict[str, int] | None
) -> None:
    """Write predict_results_TASK.txt: a line with number and label (or value) for each test row."""
    name = data_args.task_name or "test"
    splits = {name: "test"} if name != "mnli" else {"mnli": "test_matched", "mnli-mm": "test_mismatched"}
    for name, split in splits.items():
        rows = split_of(features, split, "--do_predict", data_args.max_predict_samples)
        hidden = [name for name in rows.column_names if name == "labels"]  # GLUE's are -1
        guesses = guess(trainer.predict(rows.remove_columns(hidden)).predictions, regression=order is None)
        if not trainer.is_world_process_zero():
            continue
        labels = {} if order is None else {number: label for label, number in order.items()}
        lines = [f"{i}\t{value:.3f}" if order is None else f"{i}\t{labels[value]}" for i, value in enumerate(guesses)]
        path = os.path.join(trainer.args.output_dir, f"predict_results_{name}.txt")
        Path(path).write_text("\n".join(["index\tprediction", *lines]) + "\n")
        logger.info(f"Predictions written to {path}: {json.dumps(lines[:2])} ...")


if __name__ == "__main__":
    run(main)
