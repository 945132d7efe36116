"""Reading and writing whole checkpoints: from a folder or the Hub, dense or condensed, with all that lies beside weights."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from hf_srigl.commands.common import CommandError, one_line

# Beside the weights a model needs its tokenizer, processor, code, prompts, licence: text in files of these kinds.
_COMPANIONS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".py", ".md", ".yaml", ".yml"}
_COMPANION_NAMES = {"LICENSE", "NOTICE", "USE_POLICY"}
# What of those is about the weights, the training, or is written anew
_OWN = {"config.json", "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}
_DOWNLOADED = [f"*{ending}" for ending in sorted(_COMPANIONS)] + [f"{name}*" for name in sorted(_COMPANION_NAMES)]
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Loaded:
    """A model from a checkpoint. `unused` are tensors of the files that its class does not have."""

    model: PreTrainedModel
    folder: Path
    unused: tuple[str, ...]


@dataclass
class Written:
    """What was put beside the weights: names of files `copied` from the source, and of those `left` there."""

    copied: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def fetch(source: str, *, companions: bool = False) -> Path:
    """The folder of a checkpoint: `source` itself if it exists, else the snapshot of a repository on the Hub.

    Args:
        companions: also download tokenizer, processor, licence and the like, and pickled weights if there are no others.

    Raises:
        CommandError: no such folder, no such repository, no access, no network.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise CommandError(
            f"there is no {source}; give the folder that save_pretrained wrote, or a model's name on the Hub"
        )
    here = f"there is no folder {source} here, and"
    try:
        weights = ["config.json", "*.safetensors", "*.safetensors.index.json"]
        wanted = [*weights, *_DOWNLOADED] if companions else weights
        folder = Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=["*/*.safetensors"]))
        if companions and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=[*wanted, "*.bin"], ignore_patterns=["*/*.bin"]))
        return folder
    except HFValidationError as error:
        raise CommandError(f"{here} it is no name of a model on the Hub either: {one_line(error)}") from error
    except GatedRepoError as error:
        raise CommandError(
            f"{here} {source} on the Hub is gated: accept its terms there, then log in with: hf auth login"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CommandError(
            f"{here} the Hub has no model of this name, or a private one (log in with: hf auth login)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CommandError(
            f"{here} the Hub cannot be asked for a model of this name: there is no connection, or HF_HUB_OFFLINE is set"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CommandError(f"{here} downloading {source} from the Hub failed: {one_line(error)}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint.

    Raises:
        CommandError: there is none, or it is not a model's.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CommandError(f"{folder} is not a checkpoint: expected a folder with a config.json in it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        (config.get("quantization_config") or {}).get("quant_method")
    except (OSError, ValueError, AttributeError) as error:
        raise CommandError(f"{file} is not a model configuration: {one_line(error)}") from error
    return config


def load_condensed(folder: Path) -> Loaded:
    """The condensed model in `folder`, loaded with the class that wrote it, in the dtype it was written in.

    Raises:
        CommandError: it is dense or of another kind, damaged or incomplete.
    """
    method = (read_config(folder).get("quantization_config") or {}).get("quant_method")
    if method != "srigl":
        found = "a dense one" if method is None else f"one of quant_method {method!r}"
        raise CommandError(f"{folder} is not a condensed checkpoint but {found} (quantization_config in config.json)")
    return _load(folder)


def load_dense(folder: Path) -> Loaded:
    """The dense model in `folder`, loaded with the class that wrote it, in the dtype most of its values have.

    Raises:
        CommandError: it is condensed or quantized, damaged or incomplete.
    """
    method = (read_config(folder).get("quantization_config") or {}).get("quant_method")
    if method == "srigl":
        raise CommandError(f"{folder} is condensed already; to condense it anew: hf-srigl densify {folder} DENSE")
    if method is not None:
        raise CommandError(f"{folder} is quantized ({method!r}): dequantize it first, condensing needs its weights")
    for architecture in read_config(folder).get("architectures") or []:
        if getattr(transformers, architecture, None) is None:
            raise CommandError(
                f"{folder} is a {architecture}, which transformers {transformers.__version__} does not have: load it with "
                "its own code, then call hf_srigl.sparsify and save_pretrained"
            )
    loaded = _load(folder)
    if loaded.unused and not read_config(folder).get("architectures"):
        raise CommandError(
            f"{folder}/config.json does not say its architecture, and a bare {type(loaded.model).__name__} would lose "
            f'{len(loaded.unused)} tensors such as {loaded.unused[0]}: add "architectures": ["..."] there'
        )
    return loaded


def _load(folder: Path) -> Loaded:
    architectures = read_config(folder).get("architectures") or []
    loader = getattr(transformers, architectures[0], AutoModel) if architectures else AutoModel
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # what matters of its warnings is said below
        dtype = stored_dtype(folder) or "auto"
        model, info = loader.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except Exception as error:  # whatever it is that a damaged file provokes in transformers
        raise CommandError(f"{folder} cannot be loaded: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise CommandError(f"{folder} lacks weights of its {type(model).__name__}: {missing}")
    return Loaded(model, folder, tuple(sorted(info["unexpected_keys"])))


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The float dtype of most values in a folder's safetensors files, read from their headers; None without such files.

    config.json may say another one, which "auto" believes: float32 weights would be rounded without a word.

    Raises:
        ValueError: a file is not a whole safetensors file.
    """
    values: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as reader:
                for key in reader.keys():  # noqa: SIM118
                    tensor = reader.get_slice(key)
                    values[tensor.get_dtype()] += torch.Size(tensor.get_shape()).numel()
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file ({error}); download or save it again") from error
    floats = {name: number for name, number in values.items() if name in _DTYPES}
    return _DTYPES[max(floats, key=lambda name: floats[name])] if floats else None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights.

    A folder with safetensors files may also hold other formats of the same weights; those do not count.
    """
    found = [file for file in sorted(folder.glob("*.safetensors")) if file.name != "srigl_state.safetensors"]
    return found or sorted(folder.glob("pytorch_model*.bin"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` when everything is written, and vanishes if anything fails.

    Raises:
        CommandError: `path` exists and is not an empty folder, or cannot be written.
    """
    check_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise CommandError(f"cannot write to {path}: {error.strerror}") from error
    try:
        yield scratch
        scratch.chmod(0o755)  # a temporary folder is its owner's alone
        if path.exists():
            path.rmdir()
        scratch.rename(path)
    except OSError as error:
        raise CommandError(f"cannot write to {path}: {one_line(error)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_new(path: Path) -> None:
    """Raise CommandError unless `path` is free to be written: absent, or an empty folder."""
    if path.is_dir() and any(path.iterdir()):
        raise CommandError(f"{path} is not empty: give a new folder, nothing is overwritten")
    if path.exists() and not path.is_dir():
        raise CommandError(f"{path} is a file: give a new folder")


def copy_companions(source: Path, target: Path) -> Written:
    """Copy what a model needs beside its weights (tokenizer, processor, code, licence, model card) unless written already.

    Folders below are searched too, but for the Trainer's and hidden ones. Everything else is told in `Written.left`.
    """
    written = Written()
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        name = file.relative_to(source)
        if any(part.startswith((".", "checkpoint-")) or part == "runs" for part in name.parts):
            continue
        at_top = len(name.parts) == 1
        own = at_top and (file.name in _OWN or file.name.startswith("srigl_") or file.name.endswith(".index.json"))
        if (target / name).exists() or own or (at_top and file in weight_files(source)):
            continue
        if file.suffix not in _COMPANIONS and file.stem not in _COMPANION_NAMES:
            written.left.append(str(name))
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
        written.copied.append(str(name))
    return written
