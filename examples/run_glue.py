#!/usr/bin/env python
"""Fine-tune a model for sequence classification sparsely, on a GLUE task or on files of your own.

It takes the options of transformers' script of the same name, those of `SRigLConfig`, and ``--dense`` for the baseline:

    python examples/run_glue.py examples/configs/glue.yaml --model_name_or_path google-bert/bert-base-uncased \\
        --task_name mrpc --output_dir out/mrpc

The first argument may be a .json or .yaml file with options. See examples/README.md for commands with their results.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from glue_metrics import GLUE_TASKS, load_metric, multi_label_metrics
from labels import MULTI, PROBLEMS, REGRESSION, Labels, labels_in, labels_of, warn_of_other_classes
from reading import ROWS, choose, load_data
from shared import (
    HubArguments,
    Parser,
    SparseArguments,
    UserError,
    check_file,
    explained,
    finish,
    make_trainer,
    run,
    start,
    train,
)
from tables import Table, read_table, table_of, text_columns
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
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json (lines) or parquet, also .gz."})
    validation_file: str | None = field(default=None, metadata={"help": "The same columns, in any of these kinds."})
    test_file: str | None = field(default=None, metadata={"help": "The same; it may lack the labels."})
    text_column_names: str | None = field(
        default=None, metadata={"help": "The columns with the one or two sentences: sentence1,sentence2"}
    )
    label_column_names: str = field(
        default="label",
        metadata={"help": "The column with labels or lists of labels; or a column of 0 and 1 for each: toxic,insult"},
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": f"{', '.join(PROBLEMS)}; told by the training labels: lists, numbers with a fraction, others."
        },
    )
    multi_label_threshold: float = field(default=0.5, metadata={"help": "A label is given from this probability on."})
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
        if self.problem_type is not None and self.problem_type not in PROBLEMS:
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEMS)}, got {self.problem_type}")
        if not 0 < self.multi_label_threshold < 1:
            raise ValueError(f"multi_label_threshold must be between 0 and 1, got {self.multi_label_threshold}")
        if self.text_column_names is not None and len(self.text_column_names.split(",")) > 2:
            raise ValueError(f"text_column_names must name one or two columns, got {self.text_column_names}")

    def label_columns(self) -> list[str]:
        """The columns with labels."""
        return [name.strip() for name in self.label_column_names.split(",")]

    def text_columns(self, tables: dict[str, Table]) -> list[str]:
        """The columns with the one or two sentences: those named, the task's, or those that look like it."""
        if self.text_column_names is not None:
            return [name.strip() for name in self.text_column_names.split(",")]
        if self.task_name is not None:
            return [name for name in GLUE_TASKS[self.task_name] if name is not None]
        found = text_columns(tables.get("train", next(iter(tables.values()))), self.label_columns())
        logger.info(f"Sentences are read from: {', '.join(found)}.")
        return found

    def files(self) -> dict[str, str]:
        """Split -> path, of the files given."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: path for split, path in files.items() if path is not None}


def main(arguments: Sequence[str]) -> None:
    parser = Parser((ModelArguments, TeacherArguments, DataArguments, SparseArguments, TrainingArguments))
    model_args, teacher_args, data_args, sparse_args, args = parser.parse(arguments)
    if not (args.do_train or args.do_eval or args.do_predict):
        raise UserError("nothing to do: give --do_train, --do_eval or --do_predict")
    tables = load(model_args, data_args)
    splits = wanted_splits(tables, args, data_args.task_name)
    problem = REGRESSION if data_args.task_name == "stsb" else data_args.problem_type
    labels = labels_in(tables["train"], data_args.label_columns(), problem) if "train" in tables else None
    checkpoint = start(args)

    hub = model_args.hub()
    with explained(OSError, ValueError, RuntimeError, before="the model cannot be loaded: "):
        config = AutoConfig.from_pretrained(model_args.config_name or model_args.model_name_or_path, **hub)
        if labels is None:
            labels = labels_of(config, data_args.label_columns())
        warn_of_other_classes(config.label2id, labels.names)
        trained = config.label2id
        config.num_labels = labels.outputs
        config.problem_type = labels.problem
        config.finetuning_task = data_args.task_name
        tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or model_args.model_name_or_path, **hub)
        model = AutoModelForSequenceClassification.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **hub,
        )
    labels = labels.ordered_as(trained)
    if labels.names:
        model.config.id2label = dict(enumerate(labels.names))
        model.config.label2id = {name: number for number, name in enumerate(labels.names)}
    model.accepts_loss_kwargs = False  # these heads average over a micro-batch, whatever the accumulation
    logger.info(f"Labels: {labels.describe()}.")

    columns = data_args.text_columns(tables)
    with args.main_process_first(desc="tokenizing"):
        features = {split: tokenized(tables[split], split, columns, labels, tokenizer, data_args) for split in splits}

    train_data = choose(features["train"], data_args.max_train_samples, "train") if args.do_train else None
    eval_data = None
    if args.do_eval:
        eval_data = choose(features[evaluated(data_args.task_name)[0]], data_args.max_eval_samples, "validation")
    trainer = make_trainer(
        sparse_args,
        model,
        args,
        teaching=teaching(AutoModelForSequenceClassification, teacher_args, model, model_args),
        train_dataset=train_data,
        eval_dataset=eval_data,
        compute_metrics=metrics_of(labels, data_args),
        processing_class=tokenizer,
        data_collator=default_data_collator if data_args.pad_to_max_length else DataCollatorWithPadding(tokenizer),
    )
    if args.do_train:
        train(trainer, checkpoint, len(train_data))
    if args.do_eval:
        evaluate_all(trainer, features, eval_data, data_args)
    if args.do_predict:
        predict_all(trainer, features, data_args, labels)
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


def load(model_args: ModelArguments, data_args: DataArguments) -> dict[str, Table]:
    """The splits there are, from the Hub or from files."""
    if data_args.task_name is not None:
        data = load_data("nyu-mll/glue", data_args.task_name, **model_args.download())
    elif data_args.dataset_name is not None:
        data = load_data(data_args.dataset_name, data_args.dataset_config_name, **model_args.download())
    else:
        files = data_args.files()
        if not files:
            raise UserError("no data: give --task_name, --dataset_name, or --train_file and --validation_file")
        for split, path in files.items():
            check_file(path, f"--{split}_file", ROWS)
        return {split: read_table(path, f"--{split}_file") for split, path in files.items()}
    return {split: table_of(rows, split) for split, rows in data.items()}


def evaluated(task: str | None) -> tuple[str, ...]:
    """The splits to evaluate on."""
    return ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)


def predicted(task: str | None) -> dict[str, str]:
    """The splits to predict, by what the file of predictions is called."""
    return {"mnli": "test_matched", "mnli-mm": "test_mismatched"} if task == "mnli" else {task or "test": "test"}


def wanted_splits(tables: dict[str, Table], args: TrainingArguments, task: str | None) -> list[str]:
    """The splits that the steps asked for need.

    Raises:
        UserError: one is missing.
    """
    steps = (("do_train", ["train"]), ("do_eval", evaluated(task)), ("do_predict", predicted(task).values()))
    wanted = [(step, split) for step, splits in steps if getattr(args, step) for split in splits]
    for step, split in wanted:
        if split not in tables:
            raise UserError(f"--{step} needs {split} data, but there is only: {', '.join(tables)}")
    return [split for _, split in wanted]


def tokenized(
    table: Table,
    split: str,
    columns: Sequence[str],
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
) -> Dataset:
    """The tokens of a split, and its labels unless it is a test's."""
    length = min(data_args.max_seq_length, tokenizer.model_max_length)
    padding = "max_length" if data_args.pad_to_max_length else False
    numbers = None if split.startswith("test") else labels.numbers(table)
    texts = table.texts(columns)

    def tokenize(rows: dict[str, list]) -> dict[str, Any]:
        return tokenizer(*(rows[name] for name in columns), padding=padding, max_length=length, truncation=True)

    tokens = texts.map(
        tokenize,
        batched=True,
        load_from_cache_file=not data_args.overwrite_cache,
        remove_columns=texts.column_names,
        desc=f"Tokenizing {split}",
    )
    return tokens if numbers is None else tokens.add_column("labels", numbers)


def metrics_of(labels: Labels, data_args: DataArguments) -> Callable[[EvalPrediction], dict[str, float]]:
    """What `Trainer` calls after an evaluation."""
    if labels.problem == MULTI:
        return lambda prediction: multi_label_metrics(
            guess(prediction.predictions, labels, data_args.multi_label_threshold), prediction.label_ids
        )
    metric = load_metric(data_args.task_name, regression=labels.problem == REGRESSION)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        guesses = guess(prediction.predictions, labels, data_args.multi_label_threshold)
        result = metric.compute(predictions=guesses, references=prediction.label_ids)
        if len(result) > 1:
            result["combined_score"] = float(np.mean(list(result.values())))
        return result

    return compute


def guess(predictions: Any, labels: Labels, threshold: float) -> np.ndarray:
    """From (n, outputs) logits: (n,) values of a regression, (n,) classes, or (n, classes) 0 or 1 of several labels."""
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    if labels.problem == MULTI:
        return (logits > np.log(threshold / (1 - threshold))).astype(int)  # sigmoid(logit) > threshold
    return np.squeeze(logits, axis=-1) if labels.problem == REGRESSION else np.argmax(logits, axis=-1)


def evaluate_all(trainer: Trainer, features: dict[str, Dataset], eval_data: Dataset, data_args: DataArguments) -> None:
    """Metrics of the validation data to the log and eval_results.json; MNLI has two validation sets."""
    metrics = trainer.evaluate(eval_data)
    for split in evaluated(data_args.task_name)[1:]:
        more = choose(features[split], data_args.max_eval_samples, "validation")
        metrics |= {f"{name}_mm": value for name, value in trainer.evaluate(more).items()}
    metrics["eval_samples"] = len(eval_data)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


def predict_all(trainer: Trainer, features: dict[str, Dataset], data_args: DataArguments, labels: Labels) -> None:
    """Write predict_results_TASK.txt: a line with number and label (or value, or list of labels) for each test row."""
    for name, split in predicted(data_args.task_name).items():
        rows = choose(features[split], data_args.max_predict_samples, split)
        guesses = guess(trainer.predict(rows).predictions, labels, data_args.multi_label_threshold)
        if not trainer.is_world_process_zero():
            continue
        lines = [f"{i}\t{labels.spelled(value)}" for i, value in enumerate(guesses)]
        path = os.path.join(trainer.args.output_dir, f"predict_results_{name}.txt")
        Path(path).write_text("\n".join(["index\tprediction", *lines]) + "\n", encoding="utf-8")
        logger.info(f"Predictions written to {path}: {json.dumps(lines[:2])} ...")


if __name__ == "__main__":
    run(main)
