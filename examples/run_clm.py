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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from shared import Parser, SparseArguments, UserError, finish, make_trainer, run, start, train
from texts import (
    ModelArguments,
    TextArguments,
    chosen,
    evaluate,
    fitting,
    in_blocks,
    load_model,
    load_texts,
    load_tokenizer,
    longest_input,
)

logger = logging.getLogger(__name__)

END = "<|endoftext|>"
SPECIAL_TOKENS = {"bos_token": END, "eos_token": END, "pad_token": END}


@dataclass(kw_only=True)
class DataArguments(TextArguments):
    """Which text, and what becomes of it."""

    block_size: int = field(default=1024, metadata={"help": "Tokens of one example; at most what the model can read."})
    prompt: str | None = field(default=None, metadata={"help": "Continue this text at the end, to sample.txt."})
    max_new_tokens: int = field(default=100, metadata={"help": "Length of that sample."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size < 2:
            raise ValueError(f"block_size must be at least 2, got {self.block_size}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


def main(arguments: Sequence[str]) -> None:
    parser = Parser((ModelArguments, DataArguments, SparseArguments, TrainingArguments))
    model_args, data_args, sparse_args, args = parser.parse(arguments)
    if not (args.do_train or args.do_eval or data_args.prompt):
        raise UserError("nothing to do: give --do_train, --do_eval or --prompt")
    wanted = args.do_train or args.do_eval or model_args.train_tokenizer is not None
    data = load_texts(model_args, data_args, args) if wanted else DatasetDict()
    checkpoint = start(args)

    tokenizer = load_tokenizer(model_args, data, SPECIAL_TOKENS)
    model = load_model(AutoModelForCausalLM, model_args, tokenizer)
    size = fitting(data_args.block_size, model, "--block_size")
    with args.main_process_first(desc="tokenizing"):
        blocks = {split: in_blocks(rows, tokenizer, size, data_args) for split, rows in data.items()}

    too_short = f"is shorter than one block of {size} tokens: give more of it, or a smaller --block_size"
    train_data, eval_data = chosen(blocks, data_args, args, too_short)
    check_prompt(model, tokenizer, data_args)
    trainer = make_trainer(
        sparse_args,
        model,
        args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        data_collator=collate,
    )
    if args.do_train:
        train(trainer, checkpoint, len(train_data))
    if args.do_eval:
        evaluate(trainer, len(eval_data))
    try:
        if data_args.prompt is not None and trainer.is_world_process_zero():
            sample(trainer, tokenizer, data_args)
    finally:  # a sample that fails costs the sample and not the card
        finish(
            trainer,
            finetuned_from=model_args.model_name_or_path,
            tasks="text-generation",
            dataset=data_args.dataset_name,
            dataset_args=data_args.dataset_config_name,
        )


def check_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> None:
    """Raises `UserError` unless the prompt has tokens, and the model can read it with its continuation."""
    if data_args.prompt is None:
        return
    tokens = len(tokenizer(data_args.prompt, add_special_tokens=False)["input_ids"])
    if tokens == 0:
        raise UserError("--prompt has no tokens: give a word at least, or leave it out")
    longest = longest_input(model)
    if longest is not None and tokens + data_args.max_new_tokens > longest:
        raise UserError(
            f"--prompt has {tokens} tokens and --max_new_tokens is {data_args.max_new_tokens}, together more than the "
            f"{longest} that the model reads: make one of them shorter"
        )


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch in which every token is to be foretold: the model itself shifts the labels by one."""
    batch = default_data_collator(rows)
    return batch | {"labels": batch["input_ids"]}


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
