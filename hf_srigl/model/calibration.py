"""The size of every layer's inputs on real data, which the Wanda score weighs weights with (arXiv 2306.11695)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_srigl.config import SRigLConfig
from hf_srigl.processes import mean_over_ranks


def input_norms(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> dict[str, Tensor]:
    """L2 norm of each input feature of `layers` over all tokens of `batches`: name -> (K,) float32.

    The model runs in evaluation mode without gradients, and is left in the mode it was in. With several ranks their data
    counts together.

    Args:
        layers: submodules of `model` that take (..., K).
        batches: each a dict (``model(**batch)``), a list or tuple (``model(*batch)``) or a tensor; tensors are moved to
            the model's device.

    Raises:
        ValueError: there is no batch, a layer was not reached, or a norm is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> input_norms(model, {"0": model[0]}, [torch.tensor([[3.0, 0.0], [4.0, 1.0]])])
        {'0': tensor([5., 1.])}
    """
    squares: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            x = (*inputs, *named.values())[0].detach().float()
            here = x.reshape(-1, x.shape[-1]).square().sum(0)
            squares[name] = squares[name] + here if name in squares else here

        return add

    hooks = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    training = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    seen = 0
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                _call(model, batch, device)
                seen += 1
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if seen == 0:
        raise ValueError("calibration needs at least one batch, got none")
    for name in layers:
        if name not in squares:
            raise ValueError(
                f"layer {name}: no calibration batch reached it; exclude it (exclude_modules), or give batches that use it"
            )
        if not bool(torch.isfinite(squares[name]).all()):
            raise ValueError(f"layer {name}: its inputs on the calibration data are NaN or inf; check model and data")
    return {name: mean_over_ranks(squares[name]).sqrt() for name in layers}


def norms_for(
    model: nn.Module, targets: Mapping[str, nn.Module], config: SRigLConfig, calibration: Iterable[Any] | None
) -> dict[str, Tensor]:
    """`input_norms` where ``config.init`` wants them; else nothing.

    Raises:
        ValueError: calibration data is missing or not wanted, or as `input_norms`.
    """
    if config.init == "wanda" and calibration is None:
        raise ValueError(
            "init='wanda' needs data: sparsify(model, config, calibration=dataloader); SparseTrainer takes it from its "
            "train_dataset. While loading (from_pretrained) there is none: load the model dense first"
        )
    if config.init != "wanda" and calibration is not None:
        raise ValueError(f"calibration data is for init='wanda' only, got init={config.init!r}")
    return {} if calibration is None else input_norms(model, targets, calibration)


def _call(model: nn.Module, batch: Any, device: torch.device) -> None:
    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        model(**{key: move(value) for key, value in batch.items()})
    elif isinstance(batch, list | tuple):
        model(*map(move, batch))
    elif isinstance(batch, Tensor):
        model(move(batch))
    else:
        raise ValueError(f"a calibration batch must be a dict, list, tuple or tensor, got {type(batch).__name__}")
