"""The methods that are compared: names for options of `SRigLConfig`; None is the dense model, under the same Trainer."""

from __future__ import annotations

from typing import Any

from hf_srigl import SRigLConfig

_SCRATCH: dict[str, Any] = {"init": "random"}
_RAMP: dict[str, Any] = {"ramp_until": 0.6, "update_every": 0.04, "gamma_sal": None}

METHODS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    # from scratch
    "static": {**_SCRATCH, "update_every": None},
    "set": {**_SCRATCH, "grow": "random", "gamma_sal": None},
    "static-unstructured": {**_SCRATCH, "update_every": None, "structure": "unstructured", "gamma_sal": None},
    "rigl": {**_SCRATCH, "structure": "unstructured", "gamma_sal": None},
    "srigl-no-ablation": {**_SCRATCH, "gamma_sal": None},
    "srigl-0.3": {**_SCRATCH, "gamma_sal": 0.3},
    "srigl-0.9": {**_SCRATCH, "gamma_sal": 0.9},
    "srigl-0.95": {**_SCRATCH, "gamma_sal": 0.95},
    "srigl-0.9-erk": {**_SCRATCH, "gamma_sal": 0.9, "distribution": "erk"},
    # fine-tuning
    "one-shot": {"update_every": None},
    "one-shot-srigl": {"update_every": 0.04, "gamma_sal": None},
    "one-shot-srigl-0.3": {"update_every": 0.04, "gamma_sal": 0.3},
    "ramp-no-regrowth": {**_RAMP, "drop_fraction": 0.0},
    "ramp": _RAMP,
    "ramp-0.3": {**_RAMP, "gamma_sal": 0.3},
    "ramp-erk": {**_RAMP, "distribution": "erk"},
    "ramp-kd": _RAMP,
    "ramp-erk-kd": {**_RAMP, "distribution": "erk"},
    "ramp-erk-hidden-5": {**_RAMP, "distribution": "erk"},
    "ramp-erk-hidden-20": {**_RAMP, "distribution": "erk"},
    "ramp-erk-hidden-100": {**_RAMP, "distribution": "erk"},
    "ramp-hidden-100": _RAMP,
    "one-shot-erk-hidden-100": {"update_every": None, "distribution": "erk"},
    "one-shot-erk-srigl-hidden-100": {"update_every": 0.04, "gamma_sal": None, "distribution": "erk"},
    "wanda": {"init": "wanda", "update_every": None},
    "ramp-until-0.4": {**_RAMP, "ramp_until": 0.4},
    "ramp-until-0.75": {**_RAMP, "ramp_until": 0.75},
}

# These learn from the dense model of the same seed too: options of `SparseTrainer`.
DISTILLED: dict[str, dict[str, float]] = {
    "ramp-kd": {},
    "ramp-erk-kd": {},
    "ramp-erk-hidden-5": {"distillation_hidden_weight": 5.0},
    "ramp-erk-hidden-20": {"distillation_hidden_weight": 20.0},
    "ramp-erk-hidden-100": {"distillation_hidden_weight": 100.0},
    "ramp-hidden-100": {"distillation_hidden_weight": 100.0},
    "one-shot-erk-hidden-100": {"distillation_hidden_weight": 100.0},
    "one-shot-erk-srigl-hidden-100": {"distillation_hidden_weight": 100.0},
}


def config_of(method: str, sparsity: float, seed: int, **overrides: Any) -> SRigLConfig | None:
    """The configuration of a method, or None for dense."""
    options = METHODS[method]
    return None if options is None else SRigLConfig(**{"sparsity": sparsity, "seed": seed, **options, **overrides})
