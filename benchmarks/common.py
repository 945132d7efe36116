"""Shared by the benchmarks: the model they measure, the machine they ran on, where results go."""

from __future__ import annotations

import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

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


def processor() -> str:
    """The processor's name and its widest vector instructions, where Linux tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    vectors = next((isa for isa in ("avx512f", "avx2", "asimd") if isa in text), "no vector unit named")
    return f"{name}, {vectors}, {os.cpu_count()} cores"


def write(name: str, text: str) -> None:
    """Print the results and write them to benchmarks/results/`name`.md with machine, versions, date and command."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    head = f"- command: `python {' '.join(sys.argv)}`\n- date: {date.today()}\n- machine: {processor()}\n- {versions}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"{head}\n{text}\n")
    print(f"{head}\n{text}")
