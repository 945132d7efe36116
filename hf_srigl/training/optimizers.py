"""Optimizer state follows its weights: which state tensors move with a topology, and which optimizers are refused."""

from __future__ import annotations

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn, optim

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
    for cls in type(optimizer).__mro__:
        package = cls.__module__.split(".")[0]
        why = _REFUSED_PACKAGES.get(package) or _REFUSED_CLASSES.get(cls.__name__)
        if "8bit" in cls.__name__.lower() or "4bit" in cls.__name__.lower():
            why = "its 8-bit or 4-bit state is quantized in blocks that do not follow single weights"
        if why is not None:
            raise ValueError(f"{type(optimizer).__name__} cannot train a condensed model: {why}; {_WAY_OUT}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in held:
            raise ValueError(
                f"layer {name}: its weight is trainable, but the optimizer does not hold it; create the optimizer after "
                "sparsify(), or freeze the layer with layer.weight.requires_grad_(False)"
            )


def movable_state(optimizer: optim.Optimizer, name: str, parameter: nn.Parameter) -> list[Tensor]:
    """The state tensors with one value for each value of `parameter`, (B,) each; step counts and the like stay behind.

    Raises:
        ValueError: there is state that neither has one float for each weight nor is a single number.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.ones(3)); adam = optim.AdamW([weight])
        >>> weight.sum().backward(); adam.step()
        >>> [tuple(t.shape) for t in movable_state(adam, "layer", weight)]
        [(3,), (3,)]
    """
    moved = []
    for key, value in _sized(optimizer, parameter).items():
        if value.shape != parameter.shape or not value.is_floating_point():
            raise ValueError(
                f"layer {name}: {type(optimizer).__name__} keeps state {key!r} of shape {tuple(value.shape)} "
                f"{value.dtype} for a weight of shape {tuple(parameter.shape)}, which cannot follow a topology; {_WAY_OUT}"
            )
        moved.append(value)
    return moved


def fit_state(optimizer: optim.Optimizer, parameter: nn.Parameter) -> None:
    """Cut the optimizer's state down to a parameter that has been resized: one value for each of the first slots."""
    for key, value in _sized(optimizer, parameter).items():
        if value.ndim == 1 and value.numel() > parameter.numel():
            optimizer.state[parameter][key] = value[: parameter.numel()].clone()


def _sized(optimizer: optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state of a parameter without step counts and other single numbers."""
    state = optimizer.state.get(parameter, {})
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, Tensor) and value.ndim > 0 and not value.numel() == 1 < parameter.numel()
    }
