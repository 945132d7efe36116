"""What the example scripts share: reading arguments, saying what is wrong in one sentence, the Trainer, the model card."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
import transformers
import yaml
from torch import nn
from transformers import AutoConfig, HfArgumentParser, PreTrainedConfig, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_srigl import SparseTrainer, SRigLConfig, sparsity_report
from hf_srigl.commands.common import one_line
from hf_srigl.model.attachment import condensed_layers, config_of
from hf_srigl.training.trainer import _FIXED

logger = logging.getLogger(__name__)


class UserError(Exception):
    """Something that whoever typed the command can put right; `run` prints it as one sentence."""


@dataclass(frozen=True, kw_only=True)
class SparseArguments(SRigLConfig):
    """The options of `SRigLConfig`, `--dense`, and no seed of their own: the topology takes `--seed` too."""

    dense: bool = field(default=False, metadata={"help": "Train the dense baseline; all sparsity options are ignored."})
    seed: int = field(default=0, init=False)


@dataclass(kw_only=True)
class HubArguments:
    """How to fetch a model."""

    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep what is downloaded or prepared."})
    model_revision: str = field(default="main", metadata={"help": "A branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub; `hf auth login` stores one."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def download(self) -> dict[str, Any]:
        """Options of `load_data` for a data set of the Hub."""
        return {"cache_dir": self.cache_dir, "token": self.token}

    def hub(self) -> dict[str, Any]:
        """Options of `from_pretrained`."""
        return self.download() | {"revision": self.model_revision, "trust_remote_code": self.trust_remote_code}


@dataclass(kw_only=True)
class NewModelArguments(HubArguments):
    """Which model to start from, or to make."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A model on the Hub, or its folder."})
    model_type: str | None = field(default=None, metadata={"help": "Of a new model: gpt2, llama, bert, vit, ..."})
    config_name: str | None = field(default=None, metadata={"help": "A configuration, on the Hub or in a folder."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes to a new model's configuration: hidden_size=384,num_attention_heads=6"}
    )

    def __post_init__(self) -> None:
        if self.model_name_or_path is not None and self.config_overrides is not None:
            raise ValueError("config_overrides is for new models, leave out model_name_or_path or config_overrides")
        if not (self.model_name_or_path or self.model_type or self.config_name):
            raise ValueError("give model_name_or_path for a trained model, or model_type or config_name for a new one")

    def configuration(self) -> PreTrainedConfig:
        """The trained model's, or that of the new one with the changes asked for."""
        name = self.config_name or self.model_name_or_path
        config = AutoConfig.from_pretrained(name, **self.hub()) if name else AutoConfig.for_model(self.model_type)
        if self.config_overrides is None:
            return config
        config.update_from_string(self.config_overrides)
        if name:
            return config
        changed = [pair.split("=")[0] for pair in self.config_overrides.split(",")]
        # Made once more, so that what is derived (ModernBERT's layer_types) follows from the changes.
        return AutoConfig.for_model(self.model_type, **{option: getattr(config, option) for option in changed})


class Parser(HfArgumentParser):
    """HfArgumentParser with a settings file in front: ``script.py settings.yaml --learning_rate 1e-4``.

    The file (.json, .yaml or .yml) holds options by name; what follows on the command line overrides it. ``null``
    means none there too: ``--gamma_sal null``.
    """

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """One instance for each dataclass.

        Raises:
            UserError: anything wrong with the file or the options.
        """
        arguments = list(arguments)
        if arguments and arguments[0].endswith((".json", ".yaml", ".yml")):
            self._read(Path(arguments.pop(0)))
        for i in reversed(range(len(arguments) - 1)):
            if arguments[i].startswith("--") and arguments[i + 1] == "null":
                self._set({arguments[i][2:].replace("-", "_"): None})
                del arguments[i : i + 2]
        with explained(ValueError, TypeError, ImportError):
            *parsed, unknown = self.parse_args_into_dataclasses(
                arguments, return_remaining_strings=True, look_for_args_file=False
            )
        if unknown:
            self._unknown(unknown[0])
        return tuple(parsed)

    def _read(self, path: Path) -> None:
        check_file(path, "the settings file")
        try:
            values = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold options by name, found a {type(values).__name__}")
        self._set(values)

    def _set(self, values: dict[str, Any]) -> None:
        actions = {action.dest: action for action in self._actions}
        for name in values:
            if name not in actions:
                self._unknown(name)
            actions[name].required = False
        self.set_defaults(**values)

    def _unknown(self, option: str) -> NoReturn:
        near = difflib.get_close_matches(option.lstrip("-"), [action.dest for action in self._actions], n=1)
        hint = f", did you mean '{near[0]}'?" if near else "; --help lists the options"
        raise UserError(f"unknown option '{option}'{hint}")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call ``main(sys.argv[1:])``; a `UserError` becomes one sentence on stderr and exit code 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(_fail(str(error)))


def _fail(sentence: str) -> int:
    print(f"{Path(sys.argv[0]).name}: error: {sentence}", file=sys.stderr)
    return 2


@contextmanager
def explained(*kinds: type[Exception], before: str = "") -> Iterator[None]:
    """Turn errors of these kinds into a `UserError` that begins with `before`."""
    try:
        yield
    except kinds as error:
        raise UserError(before + one_line(error)) from error


def check_file(path: str | Path, what: str, suffixes: tuple[str, ...] = ()) -> None:
    """Raises `UserError` unless `path` is a file that is not empty and ends with one of `suffixes`, perhaps with .gz."""
    if Path(path).is_dir():
        raise UserError(f"{what} is a folder, expected a file: {path}")
    if not Path(path).is_file():
        raise UserError(f"{what} does not exist: {path}")
    if suffixes and suffix_of(path) not in suffixes:
        raise UserError(f"{what} must end with {', '.join(suffixes[:-1])} or {suffixes[-1]}, got {path}")
    if Path(path).stat().st_size == 0:
        raise UserError(f"{what} is empty: {path}")


def suffix_of(path: str | Path) -> str:
    """The ending that says what a file is: ``.csv`` of ``Data.CSV`` and ``data.csv.gz``."""
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix


def start(args: TrainingArguments) -> str | None:
    """Set up logging and the seed; the checkpoint to resume from, if any.

    Raises:
        UserError: training would write into a folder that holds something else.
    """
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
        datefmt="%m/%d/%Y %H:%M:%S",
        handlers=[logging.StreamHandler(sys.stdout)],
    )
    level = args.get_process_log_level()
    for name in ("__main__", "shared", "texts", "hf_srigl"):
        logging.getLogger(name).setLevel(logging.INFO if args.should_log and args.log_level == "passive" else level)
    if args.log_level != "passive":
        datasets.utils.logging.set_verbosity(level)
        transformers.utils.logging.set_verbosity(level)
    args.dataloader_pin_memory &= torch.accelerator.is_available()
    logger.info(f"{args.parallel_mode.value}, {args.world_size} process(es), device {args.device}, bf16 {args.bf16}")
    transformers.set_seed(args.seed)

    if args.resume_from_checkpoint is not None:
        if not os.path.isdir(args.resume_from_checkpoint):
            raise UserError(f"--resume_from_checkpoint is not a folder: {args.resume_from_checkpoint}")
        return args.resume_from_checkpoint
    if not (args.do_train and os.path.isdir(args.output_dir)):
        return None
    last = get_last_checkpoint(args.output_dir)
    if last is not None:
        logger.info(f"Resuming from {last}; to train anew, remove it or choose another --output_dir.")
    elif os.listdir(args.output_dir):
        raise UserError(
            f"the output directory {args.output_dir} is not empty and holds no checkpoint to resume from: remove it or "
            "choose another --output_dir"
        )
    return last


def make_trainer(
    sparse: SparseArguments,
    model: nn.Module,
    args: TrainingArguments,
    teaching: Mapping[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """A `SparseTrainer`, with a teacher's options; a `Trainer` with `--dense`, or if a dense model is only evaluated.

    Raises:
        UserError: options that cannot train the model.
    """
    with explained(ValueError, ImportError):
        config = srigl_config(sparse, model, args)
        if config is not None:
            return SparseTrainer(model=model, args=args, srigl_config=config, **(teaching or {}), **options)
        if teaching and args.do_train:
            raise UserError("a teacher teaches sparse models only: leave out --teacher_name_or_path with --dense")
        return Trainer(model=model, args=args, **options)


def srigl_config(sparse: SparseArguments, model: nn.Module, args: TrainingArguments) -> SRigLConfig | None:
    """What to train with, None for a dense training. A condensed model keeps what it cannot change.

    Raises:
        UserError: `--dense` with a condensed model.
    """
    names = [f.name for f in dataclasses.fields(SRigLConfig)]
    config = SRigLConfig(**{name: getattr(sparse, name) for name in names} | {"seed": args.seed})
    if condensed_layers(model):
        if sparse.dense:
            raise UserError("the model is condensed already: leave out --dense, or densify it first")
        carried = config_of(model)
        return dataclasses.replace(config, **{name: getattr(carried, name) for name in _FIXED})
    return config if args.do_train and not sparse.dense else None


def train(trainer: Trainer, checkpoint: str | None, samples: int) -> None:
    """Train, save model, state and metrics (with the sparsity reached) and log the sparsity."""
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    trainer.save_model()
    report = sparsity_report(trainer.accelerator.unwrap_model(trainer.model))
    metrics |= {
        "train_samples": samples,
        "train_target_sparsity": report.target_sparsity,
        "train_model_sparsity": report.model_sparsity,
    }
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()


def finish(trainer: Trainer, **card: Any) -> None:
    """Push to the Hub with `--push_to_hub`, else write the model card only."""
    card = {name: value for name, value in card.items() if value is not None}
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
