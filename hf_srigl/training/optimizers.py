"""Optimizer state follows its weights: which state tensors move with a topology, and which optimizers are refused."""

from __future__ import annotations

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn, optim

from hf_srigl.training import states

# Package that defines the optimizer class -> why its state cannot move with a topology.
_REFUSED_PACKAGES = {
    "galore_torch": "it projects two-dimensional gradients, and condensed weights have one dimension",
    "apollo_torch": "it projects two-dimensional gradients, and condensed weights have one dimension",
    "deepspeed": "DeepSpeed runs the optimizer inside backward and hides gradients",
    "lomo_optim": "it updates weights inside the backward pass, before a dense gradient is complete",
}
_REFUSED_CLASSES = {
    "Muon": "it orthogonalises two-dimensional weights, and condensed weights have one dimension",
    "LBFGS": "it keeps one flat history for all parameters",
    "Rprop": "a step size of zero, which a grown weight would start with, never recovers",
}
_WAY_OUT = "use AdamW, SGD, Adafactor or another optimizer whose state has one float for each weight"


def refused_by_name(optim_name: str) -> str | None:
    """Why `TrainingArguments(optim=optim_name)` cannot train a condensed model; None if it can.

    Example:
        >>> refused_by_name("adamw_torch_fused") is None, "8-bit" in refused_by_name("adamw_bnb_8bit")
        (True, True)
    """
    if "8bit" in optim_name or "4bit" in optim_name:
        why = "its 8-bit or 4-bit state is quantized in blocks that do not follow single weights"
    elif "layerwise" in optim_name or "lomo" in optim_name:
        why = "it updates weights inside the backward pass, before a dense gradient is complete"
    elif "galore" in optim_name or "apollo" in optim_name:
        why = "it projects two-dimensional gradients, and condensed weights have one dimension"
    else:
        return None
    return f"optim={optim_name!r} cannot train a condensed model: {why}; {_WAY_OUT}"


def unwrap(optimizer: optim.Optimizer) -> optim.Optimizer:
    """The optimizer that owns the state, inside accelerate's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def check_optimizer(optimizer: optim.Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    """Refuse what cannot work before training starts.

    Args:
        optimizer: unwrapped. parameters: layer name -> its condensed weight, trainable.

    Raises:
        ValueError: the optimizer's state cannot move with a topology, or it does not hold one of the parameters.
    """
    held: set[int] = set()
    for part in states.parts(optimizer):
        theirs = {id(p) for group in part.param_groups if group.get("use_muon", True) for p in group["params"]}
        held |= {id(p) for group in part.param_groups for p in group["params"]}
        why = _why_not(part) if any(id(p) in theirs for p in parameters.values()) else None
        if why is not None:
            raise ValueError(f"{type(part).__name__} cannot train a condensed model: {why}; {_WAY_OUT}")
    for name, parameter in parameters.items():
        if id(parameter) not in held:
            raise ValueError(
                f"layer {name}: its weight is trainable, but the optimizer does not hold it; create the optimizer after "
                "sparsify(), or freeze the layer with layer.weight.requires_grad_(False)"
            )


def _why_not(optimizer: optim.Optimizer) -> str | None:
    for cls in type(optimizer).__mro__:
        why = _REFUSED_PACKAGES.get(cls.__module__.split(".")[0]) or _REFUSED_CLASSES.get(cls.__name__)
        # Optimizer8bit is the base of all optimizers of bitsandbytes, of those with 32-bit states too
        if cls.__name__ != "Optimizer8bit" and any(bits in cls.__name__.lower() for bits in ("8bit", "4bit")):
            why = "its 8-bit or 4-bit state is quantized in blocks that do not follow single weights"
        if why is not None:
            return why
    return None


def movable_states(optimizer: optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, list[Tensor]]:
    """For each layer the state tensors with one value for each value of its weight; step counts stay behind.

    The whole optimizer is looked through: its attributes, `param_groups`, optimizers that it wraps. What is kept as
    ``dictionary[weight][key]`` moves.

    Args:
        optimizer: unwrapped. parameters: layer name -> its condensed weight.

    Raises:
        ValueError: something is kept for a weight, or has its number of values, that is not a plain float tensor there.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.ones(3)); adam = optim.AdamW([weight])
        >>> weight.sum().backward(); adam.step()
        >>> [tuple(t.shape) for t in movable_states(adam, {"layer": weight})["layer"]]
        [(3,), (3,)]
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    lengths = {parameter.numel(): name for name, parameter in parameters.items() if parameter.numel() > 1}
    moved: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for path, tensor, owner, direct in states.tensors(optimizer):
        name = lengths.get(tensor.numel()) if owner is None else names.get(id(owner))
        if name is None or _is_single(tensor, parameters[name]):
            continue
        if not direct or tensor.shape != parameters[name].shape or not states.is_plain(tensor):
            raise ValueError(
                f"layer {name}: {type(optimizer).__name__} keeps {path}, {type(tensor).__name__} of shape "
                f"{tuple(tensor.shape)} {tensor.dtype}, for a weight of shape {tuple(parameters[name].shape)}; only a plain "
                f"float tensor in state[weight] can follow a topology; {_WAY_OUT}"
            )
        moved[name].append(tensor)
    return moved


def fit_state(optimizer: optim.Optimizer, parameter: nn.Parameter) -> None:
    """Cut the optimizer's state down to a parameter that has been resized: one value for each of the first slots."""
    for found in states.tensors(optimizer):
        mine, value = found.owner is parameter and found.direct, found.tensor
        if mine and value.ndim == 1 and value.numel() > parameter.numel():
            value.data = value.data[: parameter.numel()].clone()


def _is_single(value: Tensor, parameter: nn.Parameter) -> bool:
    """A step count or another single number."""
    return value.ndim == 0 or value.numel() == 1 < parameter.numel()
