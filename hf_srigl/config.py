"""SRigLConfig: everything a user decides, validated once, JSON both ways."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class SRigLConfig:
    """How sparse, which layers, and how the topology changes during training.

    Every argument is keyword-only and has a default; the instance is immutable (use ``dataclasses.replace``).
    ``transformers.HfArgumentParser(SRigLConfig)`` turns the fields into command line options, and an instance can be
    given to ``from_pretrained(..., quantization_config=config)``, which sparsifies the model while loading it.

    Raises:
        ValueError: an option is unknown, out of range or contradicts another; the message names the option, what was
            expected and what came.

    Source: "Dynamic Sparse Training with Structured Sparsity" (arXiv 2305.02299), section 3 and appendix; the paper's
    symbols stand beside each field.

    Example:
        >>> config = SRigLConfig(sparsity=0.8, update_every=50)
        >>> SRigLConfig.from_dict(config.to_dict()) == config
        True
        >>> SRigLConfig(sparsity=1.5)
        Traceback (most recent call last):
        ...
        ValueError: sparsity must be a number in [0, 1), got 1.5
    """

    sparsity: float = field(default=0.9, metadata={"help": "Share of zero weights in the target layers, in [0, 1)."})
    distribution: Literal["uniform", "erk"] = field(
        default="uniform",
        metadata={"help": "Same density in every layer (uniform), or denser small layers at the same total (erk)."},
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Layers to make sparse: name suffixes, or one regular expression for the full name. "
            "Default: every linear layer but the output heads."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave dense, read like target_modules."}
    )
    never_ablate: list[str] = field(
        default_factory=list,
        metadata={"help": "Name suffixes of target layers that keep all their neurons, besides queries, keys, values."},
    )
    init: Literal["magnitude", "random", "wanda"] = field(
        default="magnitude",
        metadata={
            "help": "First topology: the largest weights of each neuron (magnitude, for pretrained models), or random "
            "positions with fresh values of standard deviation 1/sqrt(fan-in) (random, for training from scratch), or "
            "the largest weights times the norm of their inputs on some training data (wanda, for pretrained models)."
        },
    )
    update_every: float | None = field(
        default=100,
        metadata={
            "help": "Optimizer steps between topology updates (the paper's Delta T); below 1, a share of all steps. "
            "null keeps the first topology."
        },
    )
    drop_fraction: float = field(
        default=0.3,
        metadata={"help": "Share of weights dropped at the first update (the paper's alpha); falls to 0 by a cosine."},
    )
    stop_updates_at: float = field(
        default=0.75, metadata={"help": "Share of training after which the topology stays (the paper's T_end / T)."}
    )
    gamma_sal: float | None = field(
        default=0.3,
        metadata={
            "help": "A neuron with fewer than gamma_sal * fan-in salient weights is ablated and its weights go to the "
            "others (the paper's gamma_sal). null ablates nobody."
        },
    )
    grow: Literal["gradient", "random"] = field(
        default="gradient", metadata={"help": "Grow where the gradient is largest (RigL), or anywhere (SET)."}
    )
    stagger: bool = field(
        default=False,
        metadata={"help": "Spread the layers' updates over the interval, so that few dense gradients exist at once."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything random about the topology."})
    ramp_until: float | None = field(
        default=None,
        metadata={
            "help": "Reach the sparsity gradually: fan-in falls by a cubic schedule over this share of training. null "
            "starts at the full sparsity, which costs least memory; pretrained models lose less with a ramp."
        },
    )
    ramp_from: float = field(default=0.0, metadata={"help": "Sparsity at the start of the ramp; 0 is dense."})
    structure: Literal["constant_fan_in", "unstructured"] = field(
        default="constant_fan_in",
        metadata={
            "help": "Every neuron has as many inputs (SRigL), or weights may be anywhere in a layer (RigL): a baseline for "
            "comparisons, which saves no time."
        },
    )

    quant_method: ClassVar[str] = "srigl"  # what transformers' loading looks for

    def __post_init__(self) -> None:
        _check_number("sparsity", self.sparsity, "a number in [0, 1)", lambda v: 0 <= v < 1)
        for name in _CHOICES:
            choices = _CHOICES[name]
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            _check_names(name, value)
            if isinstance(value, tuple):
                object.__setattr__(self, name, list(value))  # as JSON gives it back
        never_ablate = () if self.never_ablate is None else self.never_ablate
        if isinstance(never_ablate, str):
            raise ValueError(f"never_ablate must be a list of name suffixes, got the string {never_ablate!r}")
        _check_names("never_ablate", never_ablate)
        object.__setattr__(self, "never_ablate", tuple(never_ablate))
        if self.update_every is not None:
            expected = "a whole number of steps >= 1, a share of all steps in (0, 1), or None"
            _check_number("update_every", self.update_every, expected, lambda v: 0 < v < 1 or (v >= 1 and v == int(v)))
            if self.update_every >= 1:
                object.__setattr__(self, "update_every", int(self.update_every))
        _check_number("drop_fraction", self.drop_fraction, "a number in [0, 1]", lambda v: 0 <= v <= 1)
        _check_number("stop_updates_at", self.stop_updates_at, "a number in [0, 1]", lambda v: 0 <= v <= 1)
        if self.gamma_sal is not None:
            _check_number("gamma_sal", self.gamma_sal, "a number in [0, 1], or None", lambda v: 0 <= v <= 1)
        self._check_ramp()
        if self.structure == "unstructured" and (self.gamma_sal is not None or self.ramp_until is not None):
            raise ValueError(
                "structure='unstructured' is a baseline without neuron ablation and without a ramp: set gamma_sal=None and "
                f"ramp_until=None, got {self.gamma_sal} and {self.ramp_until}"
            )
        if not isinstance(self.stagger, bool):
            raise ValueError(f"stagger must be True or False, got {self.stagger!r}")
        if self.stagger and self.update_every is None:
            raise ValueError("stagger=True spreads topology updates, but update_every=None means there are none")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")

    def _check_ramp(self) -> None:
        _check_number("ramp_from", self.ramp_from, "a number in [0, 1)", lambda v: 0 <= v < 1)
        if self.ramp_until is None:
            if self.ramp_from:
                raise ValueError(f"ramp_from={self.ramp_from} starts a ramp that has no end: set ramp_until too")
            return
        _check_number("ramp_until", self.ramp_until, "a number in (0, 1], or None", lambda v: 0 < v <= 1)
        if self.update_every is None:
            raise ValueError(
                "ramp_until needs topology updates to lower the fan-in, but update_every=None means there are none; "
                "set update_every (drop_fraction=0 lowers it without regrowth)"
            )
        if self.ramp_until > self.stop_updates_at:
            raise ValueError(
                f"the ramp must end before the updates do: expected ramp_until <= stop_updates_at = "
                f"{self.stop_updates_at}, got {self.ramp_until}"
            )
        if self.init == "wanda" and self.ramp_from == 0:
            raise ValueError(
                "init='wanda' chooses the first topology, but a ramp from dense has nothing to choose: set ramp_from, or "
                "use init='magnitude'"
            )
        if self.ramp_from >= self.sparsity:
            raise ValueError(f"ramp_from must be below the sparsity to reach, {self.sparsity}, got {self.ramp_from}")

    @classmethod
    def for_finetuning(cls, sparsity: float = 0.9, **options: Any) -> SRigLConfig:
        """What keeps most of a pretrained model's quality: a ramp from dense with regrowth, nobody ablated, ERK densities.

        Use a larger learning rate than is best for the dense model, up to three times as large at 90%, and where you can a
        dense teacher: ``SparseTrainer(teacher=..., distillation_hidden_weight=100.0)``. `docs/accuracy.md` has the evidence.

        Args:
            sparsity: to be reached after 60 % of the training. options: any other field, also instead of the recipe's.

        Example:
            >>> config = SRigLConfig.for_finetuning(0.8)
            >>> config.ramp_until, config.update_every, config.gamma_sal, config.init, config.distribution
            (0.6, 0.04, None, 'magnitude', 'erk')
        """
        recipe = {
            "ramp_until": 0.6,
            "update_every": 0.04,
            "gamma_sal": None,
            "init": "magnitude",
            "distribution": "erk",
        }
        return cls(**{"sparsity": sparsity, **recipe, **options})

    @classmethod
    def for_pretraining(cls, sparsity: float = 0.9, **options: Any) -> SRigLConfig:
        """Sparse from the first step to the last, from random weights: a tenth of the memory all the way.

        ``gamma_sal`` stays at 0.3, which ablates few neurons. The paper's ViT gains much from 0.95 (71.3 to 76.0 on ImageNet
        at 90%); in this repository's small studies that gained nothing and sometimes cost a point (`docs/accuracy.md`).

        Args:
            sparsity: of the target layers. options: any other field, also instead of the recipe's.

        Example:
            >>> config = SRigLConfig.for_pretraining(0.9)
            >>> config.init, config.gamma_sal, config.ramp_until
            ('random', 0.3, None)
        """
        return cls(**{"sparsity": sparsity, "init": "random", **options})

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values.

        Example:
            >>> SRigLConfig().to_dict()["sparsity"]
            0.9
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: list(v) if isinstance(v, list | tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SRigLConfig:
        """The inverse of `to_dict`; absent fields take their defaults.

        Raises:
            ValueError: an unknown field (the message suggests the nearest one) or a bad value.

        Example:
            >>> SRigLConfig.from_dict({"sparsty": 0.5})
            Traceback (most recent call last):
            ...
            ValueError: unknown SRigLConfig option 'sparsty' (did you mean 'sparsity'?)
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(known)})"
                raise ValueError(f"unknown SRigLConfig option '{name}'{hint}")
        return cls(**values)

    def to_json_string(self) -> str:
        """The fields as indented JSON text.

        Example:
            >>> '"sparsity": 0.9' in SRigLConfig().to_json_string()
            True
        """
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_json_file(self, path: str | PathLike[str]) -> None:
        """Write `to_json_string` to a file (overwritten if present).

        Example:
            >>> SRigLConfig(seed=3).to_json_file(tmp_path / "srigl.json")
            >>> SRigLConfig.from_json_file(tmp_path / "srigl.json").seed
            3
        """
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.to_json_string())

    @classmethod
    def from_json_file(cls, path: str | PathLike[str]) -> SRigLConfig:
        """Read what `to_json_file` wrote; raises as `from_dict` does."""
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))


_CHOICES = {
    "distribution": ("uniform", "erk"),
    "init": ("magnitude", "random", "wanda"),
    "grow": ("gradient", "random"),
    "structure": ("constant_fan_in", "unstructured"),
}


def _check_number(name: str, value: Any, expected: str, accept: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not accept(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _check_names(name: str, value: Sequence[str] | str | None) -> None:
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{name} must be a valid regular expression, got {value!r}: {error}") from error
        return
    names = [] if value is None else value
    if not isinstance(names, list | tuple) or not all(isinstance(item, str) and item for item in names):
        raise ValueError(f"{name} must be a list of non-empty names or one regular expression, got {value!r}")
