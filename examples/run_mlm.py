#!/usr/bin/env python
"""Pretrain or fine-tune a masked language model sparsely, on text files or a data set of the Hub.

    python examples/run_mlm.py examples/configs/shakespeare_mlm.yaml --train_file train.txt \\
        --validation_file validation.txt --output_dir out/mlm

It takes the options of transformers' script of the same name, those of `SRigLConfig`, and ``--dense`` for the baseline.
Without --model_name_or_path the model is new (--model_type bert, roberta, modernbert, ... and --config_overrides), and
--train_tokenizer 1024 makes a byte-level BPE with a mask token from the training text, without any download.

The perplexity is that of the masked tokens. Which tokens of the validation text are masked at the end depends on --seed
and the batch size only, so that a sparse and a dense model are asked the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
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
)

SPECIAL_TOKENS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


@dataclass(kw_only=True)
class DataArguments(TextArguments):
    """Which text, how it is cut, and how much of it is hidden."""

    max_seq_length: int = field(default=512, metadata={"help": "Tokens of one example; at most what the model reads."})
    line_by_line: bool = field(
        default=False,
        metadata={"help": "Each line, or row, is an example; the text is cut into equal blocks otherwise."},
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad lines to --max_seq_length, not to the longest of the batch."}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "The share of tokens to be guessed."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length < 3:
            raise ValueError(
                f"max_seq_length must be at least 3 (a token and two around it), got {self.max_seq_length}"
            )
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability must be between 0 and 1, got {self.mlm_probability}")
        if self.pad_to_max_length and not self.line_by_line:
            raise ValueError("pad_to_max_length needs line_by_line: without it all examples are of one length anyway")


def main(arguments: Sequence[str]) -> None:
    parser = Parser((ModelArguments, DataArguments, SparseArguments, TrainingArguments))
    model_args, data_args, sparse_args, args = parser.parse(arguments)
    if not (args.do_train or args.do_eval):
        raise UserError("nothing to do: give --do_train or --do_eval")
    data = load_texts(model_args, data_args, args)
    checkpoint = start(args)

    tokenizer = load_tokenizer(model_args, data, SPECIAL_TOKENS)
    check_tokenizer(tokenizer)
    model = load_model(AutoModelForMaskedLM, model_args, tokenizer)
    model.accepts_loss_kwargs = False  # most of these heads average over a micro-batch, whatever the accumulation
    size = fitting(data_args.max_seq_length, model, "--max_seq_length")
    cut = in_lines if data_args.line_by_line else in_wrapped_blocks
    with args.main_process_first(desc="tokenizing"):
        examples = {split: cut(rows, tokenizer, size, data_args) for split, rows in data.items()}

    too_short = (
        f"is shorter than one block of {size} tokens: give more of it, a smaller --max_seq_length, or --line_by_line"
    )
    none = "has no line with a token that could be masked"
    train_data, eval_data = chosen(examples, data_args, args, none if data_args.line_by_line else too_short)
    trainer = make_trainer(
        sparse_args,
        model,
        args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        data_collator=Masking(tokenizer, mlm_probability=data_args.mlm_probability),
    )
    if args.do_train:
        train(trainer, checkpoint, len(train_data))
    if args.do_eval:
        set_seed(args.seed)  # the same masks for every model
        evaluate(trainer, len(eval_data))
    finish(
        trainer,
        finetuned_from=model_args.model_name_or_path,
        tasks="fill-mask",
        dataset=data_args.dataset_name,
        dataset_args=data_args.dataset_config_name,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `UserError` unless the tokenizer can mask and pad."""
    for kind in ("mask", "pad"):
        if getattr(tokenizer, f"{kind}_token") is None:
            raise UserError(
                f"the tokenizer has no {kind} token, which a masked language model needs: give --tokenizer_name of one "
                "that has, or --train_tokenizer with a new model"
            )


def in_wrapped_blocks(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, size: int, data_args: DataArguments
) -> Dataset:
    """`in_blocks`, each block between the tokens that begin and end a text, as far as the tokenizer has them."""
    first, last = ([] if n is None else [n] for n in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    return in_blocks(rows, tokenizer, size, data_args, (first, last))


def in_lines(rows: Dataset, tokenizer: PreTrainedTokenizerBase, size: int, data_args: DataArguments) -> Dataset:
    """Each row is an example of at most `size` tokens; rows without a token that could be masked are left out."""

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        padding = "max_length" if data_args.pad_to_max_length else False
        lines = [line.strip() for line in batch["text"]]
        encoded = tokenizer(lines, truncation=True, max_length=size, padding=padding)
        full = [not set(tokenizer.all_special_ids).issuperset(tokens) for tokens in encoded["input_ids"]]
        return {
            name: [row for row, keep in zip(encoded[name], full, strict=True) if keep]
            for name in ("input_ids", "attention_mask")
        }

    return rows.map(tokenize, remove_columns=rows.column_names, desc="Tokenizing", **data_args.mapping())


class Masking(DataCollatorForLanguageModeling):
    """transformers' masking, with at least one masked token in each batch: the mean over none is not a number."""

    def torch_mask_tokens(self, inputs: Any, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        whole = inputs.clone()
        inputs, labels = super().torch_mask_tokens(inputs, *arguments, **options)
        if (labels == -100).all():
            places = (~torch.isin(whole, torch.tensor(self.tokenizer.all_special_ids))).nonzero()
            row, column = places[torch.randint(len(places), ())].tolist()
            labels[row, column] = whole[row, column]
            inputs[row, column] = self.tokenizer.mask_token_id
        return inputs, labels


if __name__ == "__main__":
    run(main)
