"""Shared by the benchmarks: the model they measure, the machine they ran on, where results go."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_srigl.bench.measure import processor, versions

RESULTS = Path(__file__).parent / "results"


def bert_stack(seed: int = 0) -> BertForSequenceClassification:
    """Two BERT layers (hidden 768, feed-forward 3072, vocabulary 1000) with a classification head."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "vocab_size": 1000}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=2, **sizes))


def batch(rows: int = 8, tokens: int = 128) -> dict[str, torch.Tensor]:
    """Random token ids and labels for `bert_stack`."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1000, (rows, tokens), generator=generator)
    return {"input_ids": ids, "labels": torch.randint(0, 2, (rows,), generator=generator)}


def write(name: str, text: str) -> None:
    """Print the results and write them to benchmarks/results/`name`.md with machine, versions, date and command."""
    head = (
        f"- command: `python {' '.join(sys.argv)}`\n- date: {date.today()}\n- machine: {processor()}\n"
        f"- {versions('torch', 'transformers')}\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"{head}\n{text}\n")
    print(f"{head}\n{text}")
