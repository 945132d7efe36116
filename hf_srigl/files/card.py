"""The model card of a condensed model: how to load it, how sparse and how large it is, what was measured.

A card is the README.md of a repository on the Hub. One section of it, between two marks, is written here and replaced at
every upload; the rest is the Trainer's draft, or the user's own text, which is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from os import PathLike

from huggingface_hub import ModelCard
from torch import nn
from transformers import PreTrainedModel

from hf_srigl import install
from hf_srigl.bench.speed import speed_of
from hf_srigl.model.attachment import TAGS
from hf_srigl.model.report import sparsity_report

CARD_START, CARD_END = "<!-- hf_srigl -->", "<!-- /hf_srigl -->"
PICTURE = "topology.png"

_SECTION = re.compile(f"{CARD_START}.*?{CARD_END}\n?", flags=re.DOTALL)
_DRAFT = re.compile(r"<!-- the rest of this card is a draft: ([0-9a-f]{16}) -->\n")


def card_section(model: nn.Module, repo_id: str = "PATH_OR_REPO", *, picture: bool = False) -> str:
    """The part of a model card about sparsity, as Markdown: loading, sizes and measured times beside dense, the layers.

    Args:
        model: a condensed model. A time is stated only if `hf_srigl.bench.speed.measure_speed` measured it.
        repo_id: what `from_pretrained` is to be called with.
        picture: whether `PICTURE` lies next to the card.

    Example:
        >>> from hf_srigl import SRigLConfig, sparsify
        >>> "import hf_srigl" in card_section(sparsify(nn.Sequential(nn.Linear(40, 10)), SRigLConfig()))
        True
    """
    architecture = type(model).__name__
    report, speed = sparsity_report(model), speed_of(model)
    rows = [
        ("parameters", f"{report.parameters:,}", f"{report.dense_parameters:,}"),
        ("weights and indices, MB", f"{report.bytes / 1e6:.2f}", f"{report.dense_bytes / 1e6:.2f}"),
    ]
    ratios = [report.parameters / report.dense_parameters, report.bytes / report.dense_bytes]
    if speed is not None:
        rows.append(("forward pass, ms", f"{1000 * speed.condensed:.1f}", f"{1000 * speed.dense:.1f}"))
        ratios.append(speed.condensed / speed.dense)
    lines = (f"| {' | '.join(cells)} | {ratio:.2f} |" for cells, ratio in zip(rows, ratios, strict=True))
    table = "\n".join(lines)
    measured = "" if speed is None else f"\n{speed.caption()}\n"
    drawn = f"\n![Fan-in and active neurons of each layer during training]({PICTURE})\n" if picture else ""
    return f"""{CARD_START}
## Sparse model

{report.target_sparsity:.1%} of the weights in {len(report.rows)} linear layers are zero, and only the others are stored, \
trained and computed with \
([SRigL](https://arxiv.org/abs/2305.02299), constant fan-in); {report.model_sparsity:.1%} of the whole model. \
Loading it needs the `hf_srigl` package, imported once ({install.how()}):

```python
import hf_srigl
from transformers import {architecture}

model = {architecture}.from_pretrained("{repo_id}")
```

`hf_srigl.densify(model)` turns it into a plain dense model with zeros.

| | this model | dense | ratio |
|---|---|---|---|
{table}
{measured}{drawn}
<details><summary>Layer by layer</summary>

```
{report}
```

</details>
{CARD_END}
"""


def add_card_section(card: str, model: nn.Module, repo_id: str = "PATH_OR_REPO", *, picture: bool = False) -> str:
    """A model card's text with `card_section` appended, or replaced if it is there already, and the metadata it needs.

    The metadata gets `library_name`, the tags "srigl" and "sparse" and, if it is known, `base_model`; what is there
    already stays.
    """
    section = card_section(model, repo_id, picture=picture)
    joined = _SECTION.sub(lambda _: section, card) if CARD_START in card else f"{card.rstrip()}\n\n{section}"
    return _with_metadata(joined, model, repo_id)


def write_card(
    model: nn.Module, path: str | PathLike[str], repo_id: str = "PATH_OR_REPO", *, draft: bool = False
) -> None:
    """Add `card_section` to the model card file at `path`.

    Args:
        draft: the rest of the file was generated and may be generated anew, as long as nobody changes it (`is_edited`).
    """
    with open(path, encoding="utf-8") as file:
        card = file.read()
    picture = os.path.isfile(os.path.join(os.path.dirname(path), PICTURE))
    draft = draft or not is_edited(card)
    card = add_card_section(card, model, repo_id, picture=picture)
    if draft:
        card = card.replace(CARD_START, f"{CARD_START}\n<!-- the rest of this card is a draft: {_digest(card)} -->", 1)
    with open(path, "w", encoding="utf-8") as file:
        file.write(card)


def is_edited(card: str) -> bool:
    """Whether a person wrote or changed this card, outside of its section on sparsity; then it must not be generated anew.

    Example:
        >>> is_edited("# My model")
        True
    """
    draft = _DRAFT.search(card)
    return draft is None or draft.group(1) != _digest(card)


def _digest(card: str) -> str:
    """Of metadata and text, as parsed (libraries write YAML in their own ways), without the section."""
    parsed = ModelCard(_SECTION.sub("\n", card), ignore_metadata_errors=True)
    text = re.sub(r"\s+", " ", parsed.text).strip()
    metadata = json.dumps(parsed.data.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(f"{metadata}\n{text}".encode()).hexdigest()[:16]


def _with_metadata(card: str, model: nn.Module, repo_id: str) -> str:
    parsed = ModelCard(card, ignore_metadata_errors=True)
    data = parsed.data
    tags = data.get("tags") or []
    wanted = {
        "library_name": data.get("library_name") or "transformers",
        "base_model": data.get("base_model") or _base_model(model, repo_id),
        "tags": [*tags, *(tag for tag in TAGS if tag not in tags)],
    }
    missing = {key: value for key, value in wanted.items() if value and data.get(key) != value}
    if not missing:
        return card  # as it is, to the letter
    for key, value in missing.items():
        data[key] = value
    return str(parsed)


def _base_model(model: nn.Module, repo_id: str) -> str | None:
    """The Hub name of the checkpoint this model was loaded from, if it was; folders are nobody else's business."""
    name = model.config._name_or_path if isinstance(model, PreTrainedModel) else ""
    known = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not os.path.exists(name) and name != repo_id
    return name if known else None


def remove_card_section(path: str | PathLike[str]) -> None:
    """Take `card_section` and the tags "srigl" and "sparse" out of the model card file at `path`: the model is dense again."""
    with open(path, encoding="utf-8") as file:
        card = file.read()
    parsed = ModelCard(
        re.sub(f"\n*{CARD_START}.*?{CARD_END}\n?", "\n", card, flags=re.DOTALL), ignore_metadata_errors=True
    )
    tags = [tag for tag in parsed.data.get("tags") or [] if tag not in TAGS]
    if tags:
        parsed.data["tags"] = tags
    else:
        parsed.data.pop("tags")
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(parsed))
