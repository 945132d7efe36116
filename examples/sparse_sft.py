#!/usr/bin/env python
"""Supervised fine-tuning with TRL, sparsely: its SFTTrainer becomes sparse with one more base class.

    python examples/sparse_sft.py examples/configs/sft.yaml --model_name_or_path Qwen/Qwen3-0.6B \\
        --dataset_name trl-lib/Capybara --output_dir out/sft

It takes the options of TRL's `SFTConfig`, those of `SRigLConfig`, and ``--dense`` for the baseline. Local data are json
lines in any of TRL's formats: text, prompt and completion, or messages. Needs ``pip install '.[sft]'``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hf_srigl import SRigLTrainerMixin
from reading import choose, load_data, load_files
from shared import (
    Parser,
    SparseArguments,
    UserError,
    explained,
    finish,
    run,
    srigl_config,
    start,
    train,
)

logger = logging.getLogger(__name__)

FORMATS = ({"text"}, {"prompt", "completion"}, {"messages"})


class SparseSFT(SRigLTrainerMixin, SFTTrainer):
    """TRL's `SFTTrainer` for condensed models; takes `srigl_config` besides."""


@dataclass
class ModelArguments:
    """Which model to start from. Options of loading that SFTConfig has (trust_remote_code) are read from there."""

    model_name_or_path: str = field(metadata={"help": "A model on the Hub, or its folder."})
    model_revision: str = field(default="main", metadata={"help": "A branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub; `hf auth login` stores one."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep what is downloaded or prepared."})


@dataclass
class DataArguments:
    """Which examples to learn from."""

    dataset_name: str | None = field(default=None, metadata={"help": "On the Hub: trl-lib/Capybara, ..."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that dataset."})
    train_file: str | None = field(
        default=None, metadata={"help": "json lines with text, prompt and completion, or messages."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many validation rows."})


def main(arguments: Sequence[str]) -> None:
    parser = Parser((ModelArguments, DataArguments, SparseArguments, SFTConfig))
    model_args, data_args, sparse_args, args = parser.parse(arguments)
    if not args.do_train:
        raise UserError("nothing to do: give --do_train")
    data = load(model_args, data_args)
    if args.do_eval and "validation" not in data:
        raise UserError(f"--do_eval needs validation data, but there is only: {', '.join(data)}")
    checkpoint = start(args)

    hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision, "token": model_args.token}
    hub["trust_remote_code"] = args.trust_remote_code
    with explained(OSError, ValueError, RuntimeError, before="the model cannot be loaded: "):
        model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, **hub)
        tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, **hub)
    common = {
        "model": model,
        "args": args,
        "train_dataset": choose(data["train"], data_args.max_train_samples, "training"),
        "eval_dataset": choose(data["validation"], data_args.max_eval_samples, "validation") if args.do_eval else None,
        "processing_class": tokenizer,
    }
    with explained(ValueError):
        config = srigl_config(sparse_args, model, args)
        trainer = SFTTrainer(**common) if config is None else SparseSFT(srigl_config=config, **common)
    train(trainer, checkpoint, len(common["train_dataset"]))
    if args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    finish(trainer, dataset_name=data_args.dataset_name)


def load(model_args: ModelArguments, data_args: DataArguments) -> DatasetDict:
    """Splits train and perhaps validation, from the Hub or from files, in one of TRL's formats."""
    files = {"train": data_args.train_file, "validation": data_args.validation_file}
    files = {split: path for split, path in files.items() if path is not None}
    if data_args.dataset_name is not None:
        hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
        data = load_data(data_args.dataset_name, data_args.dataset_config_name, **hub)
        if "validation" not in data and "test" in data:
            data["validation"] = data["test"]
    elif files:
        data = load_files(files, (".json", ".jsonl", ".parquet"), model_args.cache_dir)
    else:
        raise UserError("no data: give --dataset_name, or --train_file")
    if "train" not in data:
        raise UserError(f"there is no training data, only: {', '.join(data)}")
    for split, rows in data.items():
        if not any(names <= set(rows.column_names) for names in FORMATS):
            found = ", ".join(rows.column_names)
            raise UserError(f"the {split} data needs text, prompt and completion, or messages; it has only: {found}")
        for column in sorted(set().union(*FORMATS) & set(rows.column_names)):
            if rows.data.column(column).null_count:
                row = rows[column][:].index(None) + 1
                source = files.get(split, f"the {split} data")
                raise UserError(f"{source}, row {row}, column '{column}': nothing to learn from; leave the row out")
    return data


if __name__ == "__main__":
    run(main)
