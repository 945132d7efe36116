"""UnstructuredLinear: values and their positions anywhere in the matrix. A baseline (RigL, SET, static), not for speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_srigl.layers import shards
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.ops.collect import DenseGradient


class UnstructuredLinear(CondensedLinear):
    """A `CondensedLinear` without the constant fan-in: ``indices`` (B,) int32 are flat positions n*K + k, ascending.

    Stored, trained and saved like it; ``active`` stays all True. It always computes through a transient dense matrix,
    which autograd keeps from the forward to the backward pass.

    Raises:
        ValueError: as `CondensedLinear`; also if the layer has 2^31 positions or more.

    Example:
        >>> weight = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 4.0]])
        >>> layer = UnstructuredLinear.from_dense(weight, weight != 0)
        >>> layer.indices, layer(torch.ones(1, 3)).tolist()
        (tensor([1, 2, 5], dtype=torch.int32), [[3.0, 4.0]])
    """

    def __init__(self, in_features: int, out_features: int, budget: int, bias: bool = True, **options: Any) -> None:
        if in_features * out_features >= 2**31:
            raise ValueError(
                f"an unstructured layer of {out_features} x {in_features} has too many positions for int32"
            )
        super().__init__(in_features, out_features, budget, bias, **options)
        positions = torch.full((budget,), -1, dtype=torch.int32, device=self.indices.device)
        self.indices = torch.arange(budget, out=positions) if not positions.is_meta else positions

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None = None,
        *,
        budget: int | None = None,
        transposed: bool = False,
    ) -> UnstructuredLinear:
        """The values of ``weight`` (N, K) at the True positions of ``mask`` (N, K); rows may differ in fan-in."""
        if weight.ndim != 2 or mask.shape != weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"expected an (N, K) weight and a bool mask, got {tuple(weight.shape)}, {tuple(mask.shape)}"
            )
        positions = mask.reshape(-1).nonzero().squeeze(1)
        n_out, n_in = weight.shape
        layer = cls(
            n_in,
            n_out,
            max(positions.numel(), n_out) if budget is None else budget,
            bias is not None,
            transposed=transposed,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            layer.indices.copy_(_padded(positions, layer.budget))
            layer.weight.copy_(layer._values_of(weight))
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """``x W^T + bias``: (..., K) -> (..., N)."""
        x, weight, bias = self._operands(input)
        dense = _Expand.apply(weight, self.indices, (self.out_features, self.in_features), self.dense_grad)
        return nn.functional.linear(x, dense, bias)

    def mask(self) -> Tensor:
        """The positions that hold a value, (N, K) bool."""
        return _scatter(self.indices >= 0, self.indices, (self.out_features, self.in_features))

    def to_dense(self) -> Tensor:
        """The dense weight, (N, K), zeros where there is no value; detached."""
        return _scatter(shards.whole(self.weight.detach()), self.indices, (self.out_features, self.in_features))

    @torch.no_grad()
    def rewire(self, new_mask: Tensor, carried: Iterable[Tensor] = ()) -> Tensor:
        """As `CondensedLinear.rewire`: every (B,) tensor moves, kept positions keep their value, grown ones start at 0."""
        size = self.out_features * self.in_features
        old = torch.where(self.indices >= 0, self.indices, size).long()
        indices = _padded(new_mask.reshape(-1).nonzero().squeeze(1), self.indices.numel())
        new = torch.where(indices >= 0, indices, size).long()
        grown = self._move(old, new, carried)
        self.indices.copy_(indices)
        return grown

    def _index_dtype(self) -> torch.dtype:
        return torch.int32

    def _find_problem(self, indices: Tensor, active: Tensor) -> str | None:
        used, size = int((indices >= 0).sum()), self.out_features * self.in_features
        if bool((indices < -1).any()) or bool((indices >= size).any()) or not bool((indices[:used] >= 0).all()):
            return f"flat positions must be in [0, {size}), with -1 only in unused slots at the end"
        if not bool((indices[1:used] > indices[: max(used - 1, 0)]).all()):
            return "flat positions must ascend"
        return None if bool(active.all()) else "every row of an unstructured layer must be active"

    def _values_of(self, dense: Tensor) -> Tensor:
        return torch.where(self.indices >= 0, dense.reshape(-1)[self.indices.clamp(min=0).long()], 0)


class _Expand(torch.autograd.Function):
    """(B,) values -> the dense (N, K) matrix; its gradient is the dense gradient that an update may want."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor, shape: tuple[int, int], collection: DenseGradient) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.collection = collection
        return _scatter(weight, indices, shape)

    @staticmethod
    def backward(ctx: Any, dense_grad: Tensor) -> tuple[Tensor, None, None, None]:
        (indices,) = ctx.saved_tensors
        values = torch.where(indices >= 0, dense_grad.reshape(-1)[indices.clamp(min=0).long()], 0)
        if ctx.collection.wanted:
            ctx.collection.add(dense_grad.clone())
        return values, None, None, None


def _scatter(values: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    size = shape[0] * shape[1]
    flat = values.new_zeros(size + 1)  # the last element takes what unused slots hold
    flat[torch.where(indices >= 0, indices, size).long()] = values
    return flat[:size].view(shape)


def _padded(positions: Tensor, budget: int) -> Tensor:
    if positions.numel() > budget:
        raise ValueError(f"expected at most budget = {budget} values, got {positions.numel()}")
    return nn.functional.pad(positions.to(torch.int32), (0, budget - positions.numel()), value=-1)
