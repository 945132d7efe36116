"""What the examples for language models share: reading texts, tokenizers, new models, blocks of tokens, perplexity."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from reading import ROWS, choose, load_data, load_files
from shared import NewModelArguments, UserError, explained

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("bos", "eos", "pad", "cls", "sep", "mask")


@dataclass(kw_only=True)
class ModelArguments(NewModelArguments):
    """Which model to start from, or to make, and which tokenizer."""

    tokenizer_name: str | None = field(default=None, metadata={"help": "A tokenizer other than the model's."})
    train_tokenizer: int | None = field(
        default=None,
        metadata={
            "help": "Make a byte-level BPE of so many tokens from the training text: 256 bytes and what is learnt."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_tokenizer is None and not (self.tokenizer_name or self.model_name_or_path or self.config_name):
            raise ValueError("a new model needs a tokenizer: give tokenizer_name or train_tokenizer")


@dataclass(kw_only=True)
class TextArguments:
    """Which text."""

    dataset_name: str | None = field(default=None, metadata={"help": "On the Hub: Salesforce/wikitext, ..."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that dataset."})
    train_file: str | None = field(
        default=None, metadata={"help": "txt; csv, tsv, json or parquet with a column `text`."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    validation_split_percentage: int = field(
        default=5, metadata={"help": "Held out of the training text if there is no validation text."}
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again, even if it was done before."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training examples."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many validation examples."})

    def __post_init__(self) -> None:
        if not 0 <= self.validation_split_percentage < 100:
            raise ValueError(f"validation_split_percentage must be in [0, 100), got {self.validation_split_percentage}")

    def mapping(self) -> dict[str, Any]:
        """Options of `Dataset.map` for tokenizing."""
        return {
            "batched": True,
            "load_from_cache_file": not self.overwrite_cache,
            "num_proc": self.preprocessing_num_workers,
        }


def load_texts(model_args: ModelArguments, text_args: TextArguments, args: TrainingArguments) -> DatasetDict:
    """Splits train and validation, as far as there are any, with a column `text`.

    Raises:
        UserError: text that cannot be read, or that the steps asked for or the tokenizer lack.
    """
    files = {"train": text_args.train_file, "validation": text_args.validation_file}
    files = {split: path for split, path in files.items() if path is not None}
    if text_args.dataset_name is not None:
        data = load_data(text_args.dataset_name, text_args.dataset_config_name, **model_args.download())
    elif files:
        data = load_files(files, (".txt", *ROWS), model_args.cache_dir)
    else:
        raise UserError("no text: give --dataset_name, or --train_file and --validation_file")
    data = DatasetDict({split: _checked(rows, split) for split, rows in data.items()})
    if "validation" not in data and "train" in data:
        rows = data["train"]
        held = len(rows) * text_args.validation_split_percentage // 100
        if held == 0 and args.do_eval:
            share = f"{text_args.validation_split_percentage}% of the {len(rows)} rows or lines of the training text"
            raise UserError(
                f"{share} is none to evaluate on: give --validation_file, or a larger --validation_split_percentage"
            )
        data["validation"], data["train"] = rows.select(range(held)), rows.select(range(held, len(rows)))
    for option, split in (("--do_train", "train"), ("--do_eval", "validation")):
        if getattr(args, option[2:]) and split not in data:
            raise UserError(f"{option} needs {split} text, but there is only: {', '.join(data) or 'none'}")
    if model_args.train_tokenizer is not None and "train" not in data:
        raise UserError("--train_tokenizer needs training text")
    return data


def _checked(rows: Dataset, split: str) -> Dataset:
    """The rows that have a text; an empty cell of a csv file, or a null, has none."""
    if "text" not in rows.column_names:
        raise UserError(f"the {split} data has no column 'text', only: {', '.join(rows.column_names)}")
    kind = getattr(rows.features["text"], "dtype", "lists")
    if kind not in ("string", "large_string"):
        raise UserError(f"the column 'text' of the {split} data must hold strings, it holds {kind}")
    if rows.data.column("text").null_count == 0:
        return rows
    full = rows.filter(lambda batch: [text is not None for text in batch["text"]], batched=True)
    if len(full) < len(rows):
        logger.warning(f"{len(rows) - len(full)} of {len(rows)} rows of the {split} data have no text: left out.")
    return full


def load_tokenizer(
    model_args: ModelArguments, data: DatasetDict, special_tokens: dict[str, str]
) -> PreTrainedTokenizerBase:
    """The model's, another one, or a new one with these special tokens."""
    if model_args.train_tokenizer is not None:
        return train_tokenizer(data["train"], model_args.train_tokenizer, special_tokens)
    name = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    with explained(OSError, ValueError, before="the tokenizer cannot be loaded: "):
        return AutoTokenizer.from_pretrained(name, **model_args.hub())


def train_tokenizer(rows: Dataset, size: int, special_tokens: dict[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with `size` tokens, learned from the column `text`: every text can be written in it.

    `special_tokens` are the names and texts of its special tokens (``{"pad_token": "<pad>"}``), the first of them number 0.
    With a `cls_token` and a `sep_token` it puts them around a text.

    Raises:
        UserError: `size` is too small for the bytes and the special tokens.
    """
    special = list(dict.fromkeys(special_tokens.values()))
    if size < 256 + len(special):
        needed = f"{256 + len(special)} (256 bytes and {', '.join(special)})"
        raise UserError(f"train_tokenizer must be at least {needed}, got {size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = (batch["text"] for batch in rows.iter(1000))
    tokenizer.train_from_iterator(texts, trainer)
    if {"cls_token", "sep_token"} <= special_tokens.keys():
        first, last = special_tokens["cls_token"], special_tokens["sep_token"]
        numbers = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
        tokenizer.post_processor = processors.TemplateProcessing(f"{first} $A {last}", special_tokens=numbers)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def load_model(auto: Any, model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A trained model, or a new one with the vocabulary of the tokenizer, by an auto class (`AutoModelForCausalLM`).

    Raises:
        UserError: there is no such model, or it has not as many tokens as the tokenizer.
    """
    with explained(OSError, ValueError, RuntimeError, KeyError, AttributeError, before="the model cannot be made: "):
        config = model_args.configuration()
        if model_args.model_name_or_path is not None:
            model = auto.from_pretrained(model_args.model_name_or_path, config=config, **model_args.hub())
        else:
            config.vocab_size = len(tokenizer)
            for kind in SPECIAL_TOKENS:
                if f"{kind}_token_id" in config.to_dict():
                    setattr(config, f"{kind}_token_id", getattr(tokenizer, f"{kind}_token_id"))
            model = auto.from_config(config, trust_remote_code=model_args.trust_remote_code)
            logger.info(f"A new model, with random weights: {model.num_parameters() / 1e6:.1f}M parameters.")
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {known}: give the model's tokenizer"
        )
    return model


def longest_input(model: PreTrainedModel) -> int | None:
    """The number of tokens that the model can read, None if it has no limit."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.num_embeddings - module.padding_idx - 1  # RoBERTa counts from behind the padding
    return getattr(model.config, "max_position_embeddings", None) or None


def fitting(size: int, model: PreTrainedModel, option: str) -> int:
    """`size`, the value of `option`, or the number of tokens the model can read, if that is less."""
    longest = longest_input(model) or size
    if longest < size:
        logger.info(f"The model reads at most {longest} tokens: {option} is {longest}.")
    return min(size, longest)


def in_blocks(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    text_args: TextArguments,
    ends: tuple[list[int], list[int]] = ([], []),
) -> Dataset:
    """The text of all rows, one after the other, cut into blocks of `size` tokens; less than a block at the end is lost.

    `ends` are the tokens before and after every block, counted in its size.
    """
    first, last = ends
    inner = size - len(first) - len(last)

    def tokenize(batch: dict[str, list]) -> dict[str, Any]:
        return {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]}

    def pack(batch: dict[str, list]) -> dict[str, list]:
        tokens = list(chain.from_iterable(batch["input_ids"]))
        return {"input_ids": [first + tokens[i : i + inner] + last for i in range(0, len(tokens) - inner + 1, inner)]}

    options = text_args.mapping()
    tokens = rows.map(tokenize, remove_columns=rows.column_names, desc="Tokenizing", **options)
    return tokens.map(pack, batch_size=10_000, remove_columns=tokens.column_names, desc="Packing", **options)


def chosen(
    examples: dict[str, Dataset], text_args: TextArguments, args: TrainingArguments, too_short: str
) -> tuple[Dataset | None, Dataset | None]:
    """The examples to train and to evaluate on, as many as wanted; None for what is not to be done.

    Raises:
        UserError: there are none; `too_short` ends the sentence.
    """
    wanted = (
        ("train", "training", text_args.max_train_samples, args.do_train),
        ("validation", "validation", text_args.max_eval_samples, args.do_eval),
    )
    train_data, eval_data = (
        choose(examples[split], limit, name, empty=f"the {name} text {too_short}") if is_wanted else None
        for split, name, limit, is_wanted in wanted
    )
    return train_data, eval_data


def evaluate(trainer: Trainer, samples: int) -> None:
    """Evaluate and save the metrics, with the perplexity: e to the power of the loss."""
    metrics = trainer.evaluate() | {"eval_samples": samples}
    metrics["perplexity"] = math.exp(min(metrics["eval_loss"], 700.0))
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
