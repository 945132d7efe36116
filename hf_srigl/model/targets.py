"""Which layers of a model become sparse, which of them may lose neurons, and why the others stay dense."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_srigl.config import SRigLConfig
from hf_srigl.model.attachment import condensed_layers
from hf_srigl.model.roles import is_router, output_heads, produces_attention_inputs

# Model code in transformers that reads a linear layer's `.weight` as a matrix instead of calling the layer:
# folder under transformers/models -> attributes, of all its classes or of the class named.
# Found by searching transformers 5.23; tests/model/test_surgery.py repeats the search and shows what is missing here.
WEIGHT_READ_AS_MATRIX: dict[str, tuple[str, ...]] = {
    "bamba": ("out_proj",),
    "conditional_detr": ("k_proj",),
    "dab_detr": ("k_linear",),
    "data2vec": ("kernel",),
    "deberta": ("in_proj",),
    "detr": ("k_proj",),
    "falcon_h1": ("out_proj",),
    "falcon_mamba": ("x_proj", "dt_proj", "out_proj"),
    "gemma3n": ("prediction_coefs", "correction_coefs"),
    "granitemoehybrid": ("out_proj",),
    "jamba": ("dt_proj",),
    "layoutlmv2": ("rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"),
    "layoutlmv3": ("rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"),
    "mamba": ("x_proj", "dt_proj", "out_proj"),
    "mamba2": ("out_proj",),
    "maskformer": ("k_proj",),
    "mobilebert": ("MobileBertLMPredictionHead.dense", "MobileBertLMPredictionHead.decoder"),
    "nemotron_h": ("out_proj",),
    "neomme": ("unembedding_projection",),
    "pp_doclayout_v2": ("rel_pos_bias",),
    "reformer": ("query_key", "value"),
    "unispeech_sat": ("kernel",),
    "wav2vec2": ("kernel",),
    "wav2vec2_bert": ("kernel",),
    "wav2vec2_conformer": ("kernel",),
    "wavlm": ("q_proj", "k_proj", "v_proj", "out_proj", "kernel"),
    "zamba2": ("out_proj",),
}


def matches(name: str, patterns: Sequence[str] | str | None) -> bool:
    """PEFT's reading: a list of name suffixes (whole components), or one regular expression for the full name.

    Example:
        >>> matches("encoder.layer.0.query", ["query"]), matches("encoder.layer.0.myquery", ["query"])
        (True, False)
        >>> matches("encoder.layer.0.query", r".*layer\\.[01]\\..*")
        True
    """
    if patterns is None:
        return False
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith("." + pattern) for pattern in patterns)


def may_ablate(name: str, config: SRigLConfig) -> bool:
    """Whether neurons of this target layer may be ablated under this configuration, by its name.

    A model's outputs never are, whatever they are called: that takes the model (`output_heads`).

    Example:
        >>> may_ablate("mlp.fc1", SRigLConfig()), may_ablate("attention.query", SRigLConfig())
        (True, False)
    """
    if config.gamma_sal is None:
        return False
    kept = produces_attention_inputs(name) or is_router(name) or matches(name, config.never_ablate)
    return not kept


def find_targets(model: nn.Module, config: SRigLConfig) -> dict[str, nn.Linear | Conv1D]:
    """The layers that `config` makes sparse: name -> module, in model order; a module used twice appears once.

    By default every `nn.Linear` and `Conv1D` except output heads, routers of mixtures of experts, weights tied to another
    module, children of `nn.MultiheadAttention`, layers whose model reads their weight as a matrix, and `exclude_modules`.
    `hf_srigl.model.roles` tells heads and routers. A plain `nn.Module` has no structure that tells its head: name it in
    `exclude_modules`.

    Raises:
        ValueError: nothing matches (the message lists what could), a pattern in a list matches no layer, or a layer is
            named explicitly that cannot be made sparse (the message says why).

    Example:
        >>> model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
        >>> list(find_targets(model, SRigLConfig(exclude_modules=["head"])))
        ['body']
    """
    linears = {name: m for name, m in model.named_modules() if type(m) in (nn.Linear, Conv1D)}
    if "" in linears:
        raise ValueError(
            "the model is itself the layer to replace; put it into a module, or use CondensedLinear.from_dense"
        )
    unsupported = _unsupported(model)
    everything = [name for name, _ in model.named_modules()]
    for option in ("exclude_modules", "never_ablate"):
        _check_each_pattern_used(option, getattr(config, option), everything, linears)
    if config.target_modules is None:
        heads = output_heads(model)
        found = {n: m for n, m in linears.items() if n not in heads and n not in unsupported and not is_router(n)}
    else:
        modules = dict(model.named_modules())
        named = [name for name in modules if name and matches(name, config.target_modules)]
        _check_each_pattern_used("target_modules", config.target_modules, named, linears)
        excluded = [name for name in named if matches(name, config.exclude_modules)]
        for name in named:
            if name in unsupported and name not in excluded:
                raise ValueError(
                    f"layer {name} cannot be made sparse: {unsupported[name]}; leave it out of target_modules"
                )
        if isinstance(config.target_modules, str):  # a regular expression also matches containers on the way
            named = [name for name in named if name in linears]
        wrong = [name for name in named if name not in linears]
        if wrong:
            raise ValueError(
                f"layer {wrong[0]} cannot be made sparse: expected nn.Linear or transformers Conv1D, found "
                f"{type(modules[wrong[0]]).__name__}; leave it out of target_modules"
            )
        found = {name: linears[name] for name in named}
    found = {name: m for name, m in found.items() if not matches(name, config.exclude_modules)}
    if not found:
        could = [name for name in linears if name not in unsupported]
        listing = ", ".join(could[:20]) + (f" and {len(could) - 20} more" if len(could) > 20 else "")
        raise ValueError(
            f"no layer to make sparse: target_modules={config.target_modules!r} less "
            f"exclude_modules={config.exclude_modules!r} matches nothing; it could match: {listing or 'nothing here'}"
        )
    for name, module in found.items():
        if module.weight.is_meta:
            raise ValueError(f"layer {name} has no data (meta device): load the model's weights before sparsify()")
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            raise ValueError(
                f"layer {name} has hooks, which would be lost: remove them, or register them after sparsify()"
            )
        if "_hf_hook" in module.__dict__:
            raise ValueError(
                f"layer {name} is managed by accelerate (device_map over several devices): sparsify the model on one "
                "device, save it, and load the condensed model with device_map"
            )
    return found


def sound_targets(model: nn.Module, config: SRigLConfig) -> dict[str, nn.Linear | Conv1D]:
    """The layers that can be condensed at once; raises for all that `sparsify` refuses."""
    if not isinstance(config, SRigLConfig):
        raise TypeError(f"config must be an SRigLConfig, got {type(config).__name__}: SRigLConfig(**options)")
    already = list(condensed_layers(model))
    if already:
        raise ValueError(
            f"the model is condensed already ({len(already)} layers, first {already[0]}); "
            "train it as it is, or densify() it before sparsifying anew"
        )
    targets = find_targets(model, config)
    for name, module in targets.items():
        if not module.weight.is_floating_point():
            raise ValueError(f"layer {name}: expected floating point weights, found {module.weight.dtype} (quantized?)")
        if config.init != "random" and not bool(torch.isfinite(module.weight).all()):
            raise ValueError(f"layer {name}: expected finite weights, found NaN or inf; load a sound checkpoint")
    return targets


def _check_each_pattern_used(
    option: str, patterns: Sequence[str] | str | None, named: list[str], linears: dict[str, nn.Linear | Conv1D]
) -> None:
    """A name in a list that matches nothing is a typing error; a regular expression may well match nothing."""
    for pattern in patterns if isinstance(patterns, list | tuple) else []:
        if not any(matches(name, [pattern]) for name in named):
            could = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise ValueError(
                f"{option} names {pattern!r}, which no layer matches; last names of linear layers: {could}"
            )


def _unsupported(model: nn.Module) -> dict[str, str]:
    """name -> why, for every module that must not be replaced."""
    reasons: dict[str, str] = {}
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter_name == "weight":
                owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        for name in names if len(names) > 1 else []:
            others = ", ".join(n for n in names if n != name)
            reasons[name] = f"its weight is tied to {others}"
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            for child in ("linear1", "linear2"):
                why = "nn.TransformerEncoderLayer reads its weight as a matrix in evaluation"
                reasons[f"{name}.{child}".strip(".")] = why
        if isinstance(module, nn.MultiheadAttention):
            for child, _ in module.named_modules():
                reasons[f"{name}.{child}".strip(".")] = "nn.MultiheadAttention reads its children's weights as matrices"
        family = _model_family(module)
        for entry in WEIGHT_READ_AS_MATRIX.get(family, ()):
            owner, _, child = entry.rpartition(".")
            if owner not in ("", type(module).__name__):
                continue
            why = f"{family} reads its weight as a matrix instead of calling the layer"
            reasons.setdefault(f"{name}.{child}".strip("."), why)
        if type(module) in (nn.Linear, Conv1D):
            if "weight" not in module._parameters:
                reasons.setdefault(name, "its weight is computed from other tensors (weight norm, pruning)")
            if any(part.startswith("lora_") for part in name.split(".")):
                reasons.setdefault(name, "it is a LoRA adapter; sparsify the model first and add adapters afterwards")
        elif isinstance(module, nn.Linear | Conv1D):
            reasons.setdefault(name, f"{type(module).__name__} is a linear layer of its own kind")
    return reasons


def _model_family(module: nn.Module) -> str:
    """The folder under transformers/models that defines a module's class; "" for any other class."""
    _, found, rest = type(module).__module__.partition("transformers.models.")
    return rest.split(".")[0] if found else ""
