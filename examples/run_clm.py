#!/usr/bin/env python
"""Pretrain or fine-tune a causal language model sparsely, on text files or a data set of the Hub.

    python examples/run_clm.py examples/configs/shakespeare.yaml --train_file train.txt --validation_file validation.txt \\
        --output_dir out/clm

It takes the options of transformers' script of the same name, those of `SRigLConfig`, and ``--dense`` for the baseline.
Without --model_name_or_path the model is new (--model_type gpt2, llama, ... and --config_overrides), and
--train_tokenizer 1024 makes a byte-level BPE of that many tokens from the training text, without any download.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from shared import (
    NewModelArguments,
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

logger = logging.getLogger(__name__)

END = "<|endoftext|>"


@dataclass(kw_only=True)
class ModelArguments(NewModelArguments):
    """Which model to start from, or to make, and which tokenizer."""

    tokenizer_name: str | None = field(default=None, metadata={"help": "A tokenizer other than the model's."})
    train_tokenizer: int | None = field(
        default=None, metadata={"help": "Make a byte-level BPE of so many tokens from the training text; at least 257."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_tokenizer is None and not (self.tokenizer_name or self.model_name_or_path or self.config_name):
            raise ValueError("a new model needs a tokenizer: give tokenizer_name or train_tokenizer")
        if self.train_tokenizer is not None and self.train_tokenizer < 257:
            raise ValueError(f"train_tokenizer must be at least 257 (256 bytes and {END}), got {self.train_tokenizer}")


@dataclass
class DataArguments:
    """Which text, and what becomes of it."""

    dataset_name: str | None = field(default=None, metadata={"help": "On the Hub: Salesforce/wikitext, ..."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that dataset."})
    train_file: str | None = field(default=None, metadata={"help": "txt, or csv or json with a column `text`."})
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    validation_split_percentage: int = field(
        default=5, metadata={"help": "Held out of the training text if there is no validation text."}
    )
    block_size: int = field(default=1024, metadata={"help": "Tokens of one example; at most what the model can read."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again, even if it was done before."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training blocks."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many validation blocks."})
    prompt: str | None = field(default=None, metadata={"help": "Continue this text at the end, to sample.txt."})
    max_new_tokens: int = field(default=100, metadata={"help": "Length of that sample."})

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise ValueError(f"block_size must be at least 2, got {self.block_size}")


def main(arguments: Sequence[str]) -> None:
    parser = Parser((ModelArguments, DataArguments, SparseArguments, TrainingArguments))
    model_args, data_args, sparse_args, args = parser.parse(arguments)
    if not (args.do_train or args.do_eval or data_args.prompt):
        raise UserError("nothing to do: give --do_train, --do_eval or --prompt")
    data = load(model_args, data_args)
    for option, split in (("--do_train", "train"), ("--do_eval", "validation")):
        if getattr(args, option[2:]) and split not in data:
            raise UserError(f"{option} needs {split} text, but there is only: {', '.join(data) or 'none'}")
    checkpoint = start(args)

    if model_args.train_tokenizer is not None and "train" not in data:
        raise UserError("--train_tokenizer needs training text")
    tokenizer = load_tokenizer(model_args, data)
    model = load_model(model_args, tokenizer, data_args.block_size)
    longest = getattr(model.config, "max_position_embeddings", None) or data_args.block_size
    size = min(data_args.block_size, longest)
    if size < data_args.block_size:
        logger.info(f"The model reads at most {longest} tokens: --block_size is {size}.")
    with args.main_process_first(desc="tokenizing"):
        blocks = {split: in_blocks(rows, tokenizer, size, data_args) for split, rows in data.items()}

    train_data = choose(blocks["train"], data_args.max_train_samples, "training") if args.do_train else None
    eval_data = choose(blocks["validation"], data_args.max_eval_samples, "validation") if args.do_eval else None
    trainer = make_trainer(
        sparse_args,
        model,
        args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    if args.do_train:
        train(trainer, checkpoint, len(train_data))
    if args.do_eval:
        metrics = trainer.evaluate() | {"eval_samples": len(eval_data)}
        metrics["perplexity"] = math.exp(min(metrics["eval_loss"], 700.0))
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if data_args.prompt is not None and trainer.is_world_process_zero():
        sample(trainer, tokenizer, data_args)
    finish(
        trainer,
        finetuned_from=model_args.model_name_or_path,
        tasks="text-generation",
        dataset=data_args.dataset_name,
        dataset_args=data_args.dataset_config_name,
    )


def load(model_args: ModelArguments, data_args: DataArguments) -> DatasetDict:
    """Splits train and validation with a column `text`; no split at all if only a sample is wanted."""
    files = {"train": data_args.train_file, "validation": data_args.validation_file}
    files = {split: path for split, path in files.items() if path is not None}
    if data_args.dataset_name is not None:
        hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
        data = load_data(data_args.dataset_name, data_args.dataset_config_name, **hub)
    elif files:
        for split, path in files.items():
            check_file(path, f"--{split}_file", (".txt", ".csv", ".json", ".jsonl"))
        suffixes = {Path(path).suffix for path in files.values()}
        if len(suffixes) > 1:
            raise UserError(f"the files must all be of one kind, got {', '.join(sorted(suffixes))}")
        kind = {".txt": "text", ".csv": "csv"}.get(suffixes.pop(), "json")
        options = {"keep_linebreaks": True} if kind == "text" else {}
        data = load_data(kind, data_files=files, cache_dir=model_args.cache_dir, **options)
    elif data_args.prompt is not None:
        return DatasetDict()
    else:
        raise UserError("no text: give --dataset_name, or --train_file and --validation_file")
    for split, rows in data.items():
        if "text" not in rows.column_names:
            raise UserError(f"the {split} data has no column 'text', only: {', '.join(rows.column_names)}")
    if "validation" not in data and "train" in data:
        rows = data["train"]
        held = len(rows) * data_args.validation_split_percentage // 100
        data["validation"], data["train"] = rows.select(range(held)), rows.select(range(held, len(rows)))
    return data


def load_tokenizer(model_args: ModelArguments, data: DatasetDict) -> PreTrainedTokenizerBase:
    """The model's, another one, or a new one."""
    if model_args.train_tokenizer is not None:
        return train_tokenizer(data["train"], model_args.train_tokenizer)
    name = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    with explained(OSError, ValueError, before="the tokenizer cannot be loaded: "):
        return AutoTokenizer.from_pretrained(
            name,
            cache_dir=model_args.cache_dir,
            revision=model_args.model_revision,
            token=model_args.token,
            trust_remote_code=model_args.trust_remote_code,
        )


def train_tokenizer(rows: Dataset, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with `size` tokens, learned from the column `text`: every text can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    texts = (batch["text"] for batch in rows.iter(1000))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def load_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, block_size: int) -> PreTrainedModel:
    """A trained model, or a new one with the vocabulary of the tokenizer."""
    hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision, "token": model_args.token}
    hub["trust_remote_code"] = model_args.trust_remote_code
    with explained(OSError, ValueError, RuntimeError, KeyError, AttributeError, before="the model cannot be made: "):
        if model_args.model_name_or_path is not None:
            config_name = model_args.config_name or model_args.model_name_or_path
            config = AutoConfig.from_pretrained(config_name, **hub)
            return AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, config=config, **hub)
        if model_args.config_name is not None:
            config = AutoConfig.from_pretrained(model_args.config_name, **hub)
        else:
            config = AutoConfig.for_model(model_args.model_type)
        if model_args.config_overrides is not None:
            config.update_from_string(model_args.config_overrides)
        config.vocab_size = len(tokenizer)
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=model_args.trust_remote_code)
    logger.info(f"A new model, with random weights: {model.num_parameters() / 1e6:.1f}M parameters.")
    return model


def in_blocks(rows: Dataset, tokenizer: PreTrainedTokenizerBase, size: int, data_args: DataArguments) -> Dataset:
    """The text of all rows, one after the other, cut into blocks of `size` tokens; less than a block at the end is lost."""

    def tokenize(batch: dict[str, list]) -> dict[str, Any]:
        return {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]}

    def pack(batch: dict[str, list]) -> dict[str, list]:
        tokens = list(chain.from_iterable(batch["input_ids"]))
        blocks = [tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    options: dict[str, Any] = {
        "batched": True,
        "load_from_cache_file": not data_args.overwrite_cache,
        "num_proc": data_args.preprocessing_num_workers,
    }
    tokens = rows.map(tokenize, remove_columns=rows.column_names, desc="Tokenizing", **options)
    return tokens.map(pack, batch_size=10_000, remove_columns=tokens.column_names, desc="Packing", **options)


def sample(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> None:
    """Continue the prompt, show it and write it to sample.txt."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    inputs = tokenizer(data_args.prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    with torch.no_grad():
        tokens = model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=0.8,
            max_new_tokens=data_args.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    logger.info(f"A sample:\n{text}")
    Path(trainer.args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(trainer.args.output_dir, "sample.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
