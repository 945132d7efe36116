"""One dense layer <-> one condensed layer."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_srigl.config import SRigLConfig
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.layers.unstructured import UnstructuredLinear
from hf_srigl.rule import topology
from hf_srigl.rule.draws import generator_for


def dense_weight(module: nn.Linear | Conv1D) -> torch.Tensor:
    """(N, K), a view of the module's parameter; Conv1D stores (K, N)."""
    weight = module.weight.detach()
    return weight.t() if isinstance(module, Conv1D) else weight


def first_layer(
    name: str, module: nn.Linear | Conv1D, fan_in: int, config: SRigLConfig, norms: torch.Tensor | None
) -> CondensedLinear:
    """The condensed layer that training begins with: `fan_in` values for each neuron, chosen as ``config.init`` says.

    Args:
        name: seeds a random choice. module: dense; left as it is.
        norms: (K,) of the inputs, for ``init="wanda"``; else None.
    """
    weight = dense_weight(module)
    n_out, n_in = weight.shape
    kind, rows, count = kind_of(config), (n_out, n_in), fan_in
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


def empty_layer(module: nn.Linear | Conv1D, budget: int, config: SRigLConfig) -> CondensedLinear:
    """A condensed layer without values in place of `module`, on its device and of its dtype, to be filled by loading.

    Raises:
        ValueError: the budget does not fit the layer.
    """
    weight = dense_weight(module)
    n_out, n_in = weight.shape
    return kind_of(config)(
        n_in,
        n_out,
        budget,
        module.bias is not None,
        transposed=isinstance(module, Conv1D),
        device=weight.device,
        dtype=weight.dtype,
    )


def kind_of(config: SRigLConfig) -> type[CondensedLinear]:
    """The class of layer for ``config.structure``."""
    return CondensedLinear if config.structure == "constant_fan_in" else UnstructuredLinear


def expand(layer: CondensedLinear) -> nn.Linear | Conv1D:
    """The dense layer with zeros that computes the same."""
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
