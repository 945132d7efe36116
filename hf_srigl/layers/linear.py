"""CondensedLinear: the linear layer whose parameter is its few values per neuron."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_srigl.layers import shards
from hf_srigl.ops import condensed_linear
from hf_srigl.ops.collect import DenseGradient
from hf_srigl.ops.cpu import copies
from hf_srigl.rule import topology

if TYPE_CHECKING:
    from typing_extensions import Self


class CondensedLinear(nn.Module):
    """A drop-in for `nn.Linear` with constant fan-in, stored, trained and run in condensed form.

    Tensors (B is `budget`, fixed but for `resize`; N = `out_features`, K = `in_features`):

    - ``weight``: (B,) parameter; the i-th active neuron owns slots [i*k, (i+1)*k), k = `fan_in`
    - ``indices``: (B,) int16 (int32 if K > 32767) buffer; ascending in a row, -1 in unused slots
    - ``active``: (N,) bool buffer; False for an ablated neuron, whose output is its bias (0 without one)
    - ``bias``: (N,) parameter or None

    A new layer has a valid placeholder topology (the first k inputs of every neuron) and zero values; layers are
    usually made by `from_dense` or `hf_srigl.sparsify`.

    Args:
        in_features, out_features, bias, device, dtype: as for `nn.Linear`.
        budget: how many values the layer holds, from `out_features` to `out_features * in_features`.
        transposed: the layer stands in for a `transformers` Conv1D, whose weight is (K, N); `hf_srigl.densify` needs
            to know. The condensed form itself is the same.

    Raises:
        ValueError: a size or the budget is out of range; in `forward`, the last dimension of x is not `in_features`.

    Source: the condensed representation of the paper (arXiv 2305.02299), with per-layer rather than per-row ablation
    bookkeeping; see `docs/design.md`.

    Example:
        >>> weight = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 4.0]])
        >>> layer = CondensedLinear.from_dense(weight, weight != 0)
        >>> layer
        CondensedLinear(in_features=3, out_features=2, bias=False, fan_in=2, active=2/2)
        >>> layer(torch.ones(1, 3)).tolist()
        [[3.0, 7.0]]
    """

    weight: nn.Parameter
    indices: Tensor
    active: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        budget: int,
        bias: bool = True,
        *,
        transposed: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"in_features and out_features must be at least 1, got {in_features} and {out_features}")
        if not out_features <= budget <= out_features * in_features:
            raise ValueError(
                f"the budget of a layer with {in_features} inputs and {out_features} neurons must be between "
                f"{out_features} (fan-in 1) and {out_features * in_features} (dense), got {budget}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.budget, self.transposed = budget, transposed
        self.smallest_budget = budget  # below `budget` while a ramp still has to go on: what may be loaded
        self.weight = nn.Parameter(torch.zeros(budget, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        fan_in = budget // out_features
        indices = torch.full((budget,), -1, dtype=topology.index_dtype(in_features), device=device)
        indices[: fan_in * out_features] = torch.arange(fan_in, device=device).repeat(out_features).to(indices.dtype)
        self.register_buffer("indices", indices)
        self.register_buffer("active", torch.ones(out_features, dtype=torch.bool, device=device))
        self.dense_grad = DenseGradient()

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None = None,
        *,
        budget: int | None = None,
        transposed: bool = False,
    ) -> CondensedLinear:
        """The condensed form of a dense layer under a mask; device and dtype are those of `weight`.

        Args:
            weight: (N, K) float. mask: (N, K) bool; every row has the same number of True, or none (ablated).
            bias: (N,) or None.
            budget: values the layer may hold later; default: as many as the mask has.

        Raises:
            ValueError: shapes or dtypes do not fit, rows differ in fan-in, no row is active, or the budget is too small.

        Example:
            >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
            >>> CondensedLinear.from_dense(weight, weight > 1.5)
            Traceback (most recent call last):
            ...
            ValueError: expected one fan-in for all active rows, got [1, 2]
        """
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ValueError(f"weight must be an (N, K) float tensor, got {tuple(weight.shape)} {weight.dtype}")
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool of the weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)} {mask.dtype}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be of shape ({weight.shape[0]},), got {tuple(bias.shape)}")
        used = int(mask.count_nonzero())
        if used == 0:
            raise ValueError("the mask leaves no weight: at least one neuron must be active")
        n_out, n_in = weight.shape
        budget = max(used, n_out) if budget is None else budget
        indices, active = topology.to_condensed(mask, budget)
        layer = cls(
            n_in, n_out, budget, bias is not None, transposed=transposed, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            layer.indices.copy_(indices)
            layer.active.copy_(active)
            layer.weight.copy_(topology.gather(weight, layer.indices, layer.active))
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """``x W^T + bias``: (..., K) -> (..., N). Under autocast the product is computed in the autocast dtype."""
        x, weight, bias = self._operands(input)
        # A traced graph collects nothing, and must be the same with and without gradients
        handle = self.dense_grad.handle if torch.is_grad_enabled() and not torch.jit.is_tracing() else None
        keep = not self.training
        return condensed_linear(x, weight, self.indices, self.active, bias, handle, keep_dense=keep)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, checked, the values and the bias, all in the dtype of autocast if that is on."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"expected inputs of size (..., {self.in_features}), got {tuple(x.shape)}")
        if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
            return x, self.weight, self.bias
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)

    def train(self, mode: bool = True) -> Self:
        """As in `nn.Module`; in training, a dense copy kept for inference (`hf_srigl.ops.cpu.copies`) is dropped."""
        if mode:
            copies.forget(self.weight)
        return super().train(mode)

    @property
    def fan_in(self) -> int:
        """k: inputs of each active neuron (a host synchronisation on GPUs)."""
        return int((self.indices >= 0).sum()) // max(1, int(self.active.sum()))

    @property
    def initial_fan_in(self) -> int:
        """k0: the fan-in before any neuron was ablated."""
        return self.budget // self.out_features

    def mask(self) -> Tensor:
        """The positions that hold a value, (N, K) bool.

        Example:
            >>> CondensedLinear(3, 2, budget=4).mask().int().tolist()
            [[1, 1, 0], [1, 1, 0]]
        """
        return topology.to_mask(self.indices, self.active, self.in_features)

    def to_dense(self) -> Tensor:
        """The dense weight, (N, K), zeros where there is no value; detached.

        Example:
            >>> weight = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
            >>> bool((CondensedLinear.from_dense(weight, weight != 0).to_dense() == weight).all())
            True
        """
        return topology.scatter(shards.whole(self.weight.detach()), self.indices, self.active, self.in_features)

    @torch.no_grad()
    def rewire(self, new_mask: Tensor, carried: Iterable[Tensor] = ()) -> Tensor:
        """Change the topology in place: weight, its gradient and every `carried` (B,) tensor (optimizer state) move.

        Each tensor t becomes ``gather_new(scatter_old(t))``: kept connections keep their value, grown ones start at 0.
        Only slots are moved; no dense tensor is made but one of slot numbers.

        Returns:
            The flat positions that were grown, int64.

        Raises:
            ValueError: `new_mask` is no topology of this layer (as `topology.to_condensed`); nothing has changed then.

        Example:
            >>> weight = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
            >>> layer = CondensedLinear.from_dense(weight, weight != 0)
            >>> layer.rewire(torch.tensor([[True, False], [True, False]])), layer.to_dense().tolist()
            (tensor([0]), [[0.0, 0.0], [3.0, 0.0]])
        """
        indices, active = topology.to_condensed(new_mask, self.indices.numel())
        if not bool(active.any()):
            raise ValueError("the new mask leaves no neuron active")
        old = topology.slot_positions(self.indices, self.active, self.in_features)
        new = topology.slot_positions(indices, active, self.in_features)
        grown = self._move(old, new, carried)
        self.indices.copy_(indices)
        self.active.copy_(active)
        return grown

    def _move(self, old: Tensor, new: Tensor, carried: Iterable[Tensor]) -> Tensor:
        """Move all (B,) tensors from the old slots' positions to the new ones'; returns the positions that were grown."""
        size = self.out_features * self.in_features
        came_from = topology.slot_sources(old, new, size)
        for tensor in [self.weight.detach(), *([] if self.weight.grad is None else [self.weight.grad]), *carried]:
            values = shards.whole(tensor)
            shards.write(tensor, torch.where(came_from >= 0, values[came_from], values.new_zeros(())))
        return new[(came_from < 0) & (new < size)]

    @torch.no_grad()
    def resize(self, budget: int) -> None:
        """Cut weight, its gradient and indices down to `budget` slots; the parameter stays the same object.

        Raises:
            ValueError: `budget` is not between the used slots and those there are; nothing has changed then.

        Example:
            >>> layer = CondensedLinear(4, 2, budget=6)
            >>> _ = layer.rewire(torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]]).bool()); layer.resize(4); layer.indices
            tensor([0, 3, 1, 2], dtype=torch.int16)
        """
        used, slots = int((self.indices >= 0).sum()), self.indices.numel()
        if not max(used, self.out_features) <= budget <= slots:
            raise ValueError(
                f"a layer of {self.out_features} neurons with {used} of {slots} slots in use can be resized to between "
                f"{max(used, self.out_features)} and {slots} slots, got {budget}"
            )
        self.budget = budget
        if budget == slots:
            return
        self._set_slots(self.indices[:budget].clone())

    def _set_slots(self, indices: Tensor) -> None:
        grad, self.weight.grad = self.weight.grad, None
        values = self.weight.data[: indices.numel()].clone()  # a view would keep the old memory alive
        # While anybody holds the loss of the step before, autograd's gradient accumulator lives on and expects the old
        # size; assigning data of another type is what makes it forget that accumulator.
        other = torch.float32 if values.dtype == torch.float64 else torch.float64
        self.weight.data = values.new_empty(0, dtype=other)
        self.weight.data = values
        self.weight.grad = None if grad is None else grad[: indices.numel()].clone()
        self.indices = indices

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """What is saved has `budget` slots, also while the tensors must keep more (several processes on a ramp)."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.indices.numel() > self.budget:
            for name in ("weight", "indices"):
                destination[prefix + name] = destination[prefix + name].detach()[: self.budget].clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load only what is whole and valid: kernels trust the topology, so a bad one must never get in."""
        names = [prefix + name for name in ("weight", "indices", "active")]
        tensors = [state_dict.get(name) for name in names]
        if any(tensor is not None for tensor in tensors):
            budget = self._loadable_budget(*tensors[:2])
            problem = self.problem_with(*tensors, budget=budget)
            if problem is not None:
                error_msgs.append(f"layer {prefix.rstrip('.')}: {problem}")
                return
            if budget < self.indices.numel():  # saved further down a ramp
                self._set_slots(self.indices[:budget].clone())
            self.budget = budget
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _loadable_budget(self, weight: Tensor | None, indices: Tensor | None) -> int:
        """The budget that a file's tensors have if the layer may take it, else its own, which the file then fails."""
        for tensor in (weight, indices):
            if tensor is not None and tensor.ndim == 1 and self.smallest_budget <= tensor.numel() <= self.budget:
                return tensor.numel()
        return self.budget

    def problem_with(
        self, weight: Tensor | None, indices: Tensor | None, active: Tensor | None, *, budget: int | None = None
    ) -> str | None:
        """What keeps these three tensors from being loaded into this layer; None if nothing does.

        Args:
            budget: how many slots they should have; default: the layer's own.
        """
        budget = self.budget if budget is None else budget
        for name, tensor, length in (
            ("weight", weight, budget),
            ("indices", indices, budget),
            ("active", active, self.out_features),
        ):
            if name == "weight" and tensor is not None and tensor.ndim == 2:
                return (
                    f"tensor weight: expected {budget} condensed values, found a dense {tuple(tensor.shape)} "
                    "matrix; load dense weights into the dense model first and call sparsify() afterwards"
                )
            if tensor is None:
                return f"tensor {name} is missing: weight, indices and active belong together"
            if tuple(tensor.shape) != (length,):
                return f"tensor {name}: expected shape ({length},), found {tuple(tensor.shape)}"
        if weight is None or indices is None or active is None:
            return "weight, indices and active belong together"
        if not weight.is_floating_point():
            return f"tensor weight: expected a floating point dtype, found {weight.dtype}"
        if indices.dtype != self._index_dtype():  # another one could overflow
            return f"tensor indices: expected {self._index_dtype()}, found {indices.dtype}"
        if active.dtype != torch.bool:
            return f"tensor active: expected bool, found {active.dtype}"
        problem = self._find_problem(indices, active)
        return None if problem is None else f"tensors indices and active: {problem}"

    def _index_dtype(self) -> torch.dtype:
        return topology.index_dtype(self.in_features)

    def _find_problem(self, indices: Tensor, active: Tensor) -> str | None:
        return topology.find_problem(indices, active, self.in_features)

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        if self.indices.is_meta:
            return f"{shape}, budget={self.budget}"
        return f"{shape}, fan_in={self.fan_in}, active={int(self.active.sum())}/{self.out_features}"
