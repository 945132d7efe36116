"""Dense model <-> condensed model, in place: `sparsify`, `densify`, and the empty layers that loading fills."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hf_srigl import topology
from hf_srigl.attachment import (
    condensed_layers,
    detach,
    remember,
    settle,
)
from hf_srigl.calibration import input_norms
from hf_srigl.config import SRigLConfig
from hf_srigl.distribution import fan_in_per_layer
from hf_srigl.linear import CondensedLinear
from hf_srigl.targets import find_targets
from hf_srigl.unstructured import UnstructuredLinear

logger = logging.get_logger(__name__)


def sparsify(
    model: nn.Module, config: SRigLConfig, *, calibration: Iterable[Any] | None = None, progress: bool = False
) -> nn.Module:
    """Make the target layers of `model` condensed, in place, and return the model.

    A Hugging Face model also learns how to save and load its condensed form: `save_pretrained`, `from_pretrained`,
    `Trainer` checkpoints and `push_to_hub` work as before. Call it on the model that you will save, not on a part of it:
    to sparsify a part, use `target_modules`. Create the optimizer after this call.

    Args:
        model: any module; which layers are targets is told by `hf_srigl.targets.find_targets`.
        config: sparsity, distribution, targets and start (`init`); the rest is for training.
        calibration: for ``init="wanda"``: batches (a DataLoader, say) to run the model on, 128 examples are enough; each
            a dict, list, tuple or tensor (`hf_srigl.calibration.input_norms`).
        progress: show a bar, one tick for each layer (unless transformers' bars are disabled).

    Raises:
        ValueError: the model is condensed already, nothing matches, a layer named explicitly cannot be made sparse,
            weights are not finite, or calibration data is missing or not wanted. The model is unchanged then.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> sparsify(model, SRigLConfig(sparsity=0.9, exclude_modules=["2"]))
        Sequential(
          (0): CondensedLinear(in_features=20, out_features=30, bias=True, fan_in=2, active=30/30)
          (1): ReLU()
          (2): Linear(in_features=30, out_features=2, bias=True)
        )
    """
    targets = sound_targets(model, config)
    shapes = {name: dense_weight(module).shape for name, module in targets.items()}
    start = config.sparsity if config.ramp_until is None else config.ramp_from
    fan_ins = fan_in_per_layer({n: (s[0], s[1]) for n, s in shapes.items()}, start, config.distribution)
    if config.init == "random" and isinstance(model, PreTrainedModel) and model.name_or_path:
        logger.warning_once(
            f"{type(model).__name__} was loaded from {model.name_or_path}, but init='random' draws new weights for its target "
            "layers; to keep the pretrained ones use init='magnitude', or SRigLConfig.for_finetuning(...)."
        )
    norms = _norms(model, targets, config, calibration)
    for name, module in logging.tqdm(targets.items(), desc="Condensing layers", disable=not progress):
        replace(model, module, _condense(name, module, fan_ins[name], config, norms.get(name)))
    settle(model, config)
    return model


def _norms(
    model: nn.Module, targets: Mapping[str, nn.Module], config: SRigLConfig, calibration: Iterable[Any] | None
) -> dict[str, torch.Tensor]:
    if config.init == "wanda" and calibration is None:
        raise ValueError(
            "init='wanda' needs data: sparsify(model, config, calibration=dataloader); SparseTrainer takes it from its "
            "train_dataset. While loading (from_pretrained) there is none: load the model dense first"
        )
    if config.init != "wanda" and calibration is not None:
        raise ValueError(f"calibration data is for init='wanda' only, got init={config.init!r}")
    return {} if calibration is None else input_norms(model, targets, calibration)


def densify(model: nn.Module, *, progress: bool = False) -> nn.Module:
    """The inverse of `sparsify`, in place: every `CondensedLinear` becomes an `nn.Linear` or `Conv1D` with zeros.

    The result is a plain model again; saved, it loads anywhere without `hf_srigl`.

    Args:
        progress: show a bar, one tick for each layer (unless transformers' bars are disabled).

    Raises:
        ValueError: the model has no condensed layer.

    Example:
        >>> model = sparsify(nn.Sequential(nn.Linear(20, 30)), SRigLConfig(sparsity=0.9))
        >>> densify(model)
        Sequential(
          (0): Linear(in_features=20, out_features=30, bias=True)
        )
        >>> int((model[0].weight != 0).sum())
        60
    """
    layers = condensed_layers(model)
    if not layers:
        raise ValueError("the model has no condensed layer: nothing to densify")
    if "" in layers:
        raise ValueError("the model is itself the condensed layer: put it into a module, or use its to_dense()")
    for layer in logging.tqdm(layers.values(), desc="Expanding layers", disable=not progress):
        replace(model, layer, _expand(layer))
    detach(model)
    return model


def insert_empty(model: nn.Module, budgets: Mapping[str, int], config: SRigLConfig) -> None:
    """Replace layers by `CondensedLinear`s of the given budgets without values, to be filled by loading.

    Args:
        model: on the meta device or not; the new layers are on the same device and of the same dtype.
        budgets: layer name -> B.

    Raises:
        ValueError: a name is not a linear layer of this model, or a budget does not fit it.
    """
    for name, budget in budgets.items():
        module = model.get_submodule(name)
        if type(module) not in (nn.Linear, Conv1D):
            raise ValueError(
                f"layer {name}: the checkpoint holds a condensed layer, expected nn.Linear or Conv1D in the model, "
                f"found {type(module).__name__}"
            )
        weight = dense_weight(module)
        n_out, n_in = weight.shape
        try:
            layer = _kind(config)(
                n_in,
                n_out,
                budget,
                module.bias is not None,
                transposed=isinstance(module, Conv1D),
                device=weight.device,
                dtype=weight.dtype,
            )
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
        replace(model, module, layer)
    remember(model, config)


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


def dense_weight(module: nn.Linear | Conv1D) -> torch.Tensor:
    """(N, K), a view of the module's parameter; Conv1D stores (K, N)."""
    weight = module.weight.detach()
    return weight.t() if isinstance(module, Conv1D) else weight


def _condense(
    name: str, module: nn.Linear | Conv1D, fan_in: int, config: SRigLConfig, norms: torch.Tensor | None
) -> CondensedLinear:
    weight = dense_weight(module)
    n_out, n_in = weight.shape
    kind, rows, count = _kind(config), (n_out, n_in), fan_in
    if kind is UnstructuredLinear:  # one choice for the whole layer instead of one for each row
        rows, count = (1, n_out * n_in), n_out * fan_in
    if config.init == "magnitude":
        mask = topology.magnitude_mask(weight.reshape(rows), count)
    elif norms is not None:
        mask = topology.magnitude_mask((weight.float() * norms).reshape(rows), count)
    else:
        generator = generator_for(config.seed, "init", name)
        mask = topology.random_mask(rows, count, generator).to(weight.device)
        fresh = torch.randn(n_out, n_in, generator=generator) / math.sqrt(fan_in)  # activations keep their variance
        weight = fresh.to(weight.device, weight.dtype)
    return condensed_like(module, weight, mask.view(n_out, n_in), kind)


def condensed_like(
    module: nn.Linear | Conv1D, weight: torch.Tensor, mask: torch.Tensor, kind: type[CondensedLinear] = CondensedLinear
) -> CondensedLinear:
    """`weight` (N, K) under `mask`, and in all else as `module` is. The budget is what the mask holds, or N if more."""
    bias = None if module.bias is None else module.bias.detach()
    layer = kind.from_dense(weight, mask, bias, transposed=isinstance(module, Conv1D))
    layer.weight.requires_grad_(module.weight.requires_grad)
    layer.bias = module.bias  # the same object: it may be tied
    return layer.train(module.training)


def _kind(config: SRigLConfig) -> type[CondensedLinear]:
    return CondensedLinear if config.structure == "constant_fan_in" else UnstructuredLinear


def _expand(layer: CondensedLinear) -> nn.Linear | Conv1D:
    dense = layer.to_dense()
    with torch.device("meta"):  # allocates nothing and draws no random numbers
        module: nn.Linear | Conv1D
        if layer.transposed:
            module = Conv1D(layer.out_features, layer.in_features)
        else:
            module = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    dense = dense.t().contiguous() if layer.transposed else dense.clone()
    module.weight = nn.Parameter(dense, requires_grad=layer.weight.requires_grad)
    module.bias = layer.bias
    return module.train(layer.training)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands; a shared module stays shared."""
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[child_name] = new


def generator_for(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator that depends only on its arguments, so that neither order nor resuming changes what it draws.

    Example:
        >>> torch.rand(1, generator=generator_for(0, "grow", 5)) == torch.rand(1, generator=generator_for(0, "grow", 5))
        tensor([True])
    """
    digest = hashlib.blake2b("/".join(map(str, (seed, *parts))).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
