"""Where a layer's dense gradient is collected on the steps that update its topology.

The backward operator is opaque to autograd and to `torch.compile`, so it cannot return a gradient only on some steps
without recompiling. It looks up the layer's `DenseGradient` by a handle instead, and asks it at run time. The handle is
a tensor because a Python integer would be a constant of the compiled graph: one recompilation for each layer.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

_handles = itertools.count(1)
_alive: weakref.WeakValueDictionary[int, DenseGradient] = weakref.WeakValueDictionary()


class DenseGradient:
    """The sum over backward passes of one layer's ``gy^T x``, (N, K), while `wanted`; float32 or wider.

    Told how many passes to expect, it keeps only what the update can depend on as soon as the last one is in, so that
    the dense gradients of all layers need not exist together. A pass too many then spoils the collection.

    Copies (`copy.deepcopy`, pickle) start empty and under a handle of their own, so that a copied layer never writes
    into the collection of its original.

    Attributes:
        passes: backward passes of the layer since the last `start` or `stop`, collected or not.
        spoiled: a pass came after the collection was thought complete; nothing is left of it.

    Example:
        >>> gradient = DenseGradient()
        >>> gradient.start(); gradient.add(torch.ones(2, 3)); gradient.add(torch.ones(2, 3))
        >>> gradient.dense()[0, 0]
        tensor(2.)
    """

    _decisive: Callable[[Tensor], Tensor] | None
    value: Tensor | None  # the dense gradient, or once it is pruned ...
    positions: Tensor | None  # ... the flat positions kept, (P,), and
    values: Tensor | None  # ... the gradient there, (P,)
    shape: torch.Size | None

    def __init__(self) -> None:
        number = next(_handles)
        self.handle = torch.tensor(number, device="cpu")  # 0-d int64; never on meta, whatever the context
        self.stop()
        _alive[number] = self

    def __reduce__(self) -> tuple[type[DenseGradient], tuple[()]]:
        return DenseGradient, ()

    def start(self, expected_passes: int = 0, decisive: Callable[[Tensor], Tensor] | None = None) -> None:
        """Forget what was collected and collect from now on.

        Args:
            expected_passes: backward passes after which the collection is complete; 0 if that is not known.
            decisive: complete (N, K) gradient -> flat positions that are worth keeping.
        """
        self.stop()
        self.wanted = True
        self._expected_passes, self._decisive = expected_passes, decisive

    def stop(self) -> None:
        """Forget what was collected and collect no more."""
        self.wanted = self.spoiled = False
        self.passes = self._expected_passes = 0
        self._decisive = self.value = self.positions = self.values = self.shape = None

    @property
    def seen(self) -> bool:
        """Whether there is anything: the layer took part in a backward pass."""
        return self.value is not None or self.values is not None

    def add(self, dense: Tensor) -> None:
        """Add one backward pass's dense gradient, (N, K); the tensor must not be used by the caller afterwards."""
        if self.values is not None or self.spoiled:
            self.positions = self.values = None
            self.spoiled = True
            return
        if self.value is None:
            self.value = dense if dense.dtype in (torch.float32, torch.float64) else dense.float()
        else:
            self.value += dense
        if self.passes == self._expected_passes and self._decisive is not None:
            self._prune(self.value, self._decisive)

    def dense(self) -> Tensor | None:
        """The collected gradient, (N, K), with zeros where pruning left nothing; None if there is none."""
        if self.values is None or self.positions is None or self.shape is None:
            return self.value
        dense = self.values.new_zeros(self.shape)
        dense.view(-1)[self.positions.long()] = self.values
        return dense

    def is_finite(self) -> Tensor:
        """Whether no collected number is NaN or inf; 0-d bool tensor."""
        held = self.values if self.value is None else self.value
        return torch.tensor(True) if held is None else torch.isfinite(held.abs().max())

    def _prune(self, value: Tensor, decisive: Callable[[Tensor], Tensor]) -> None:
        if not bool(self.is_finite()):
            return  # the update will be postponed
        positions = decisive(value)
        positions = positions.int() if value.numel() < 2**31 else positions
        kept_bytes = positions.numel() * (positions.element_size() + value.element_size())
        if kept_bytes < value.numel() * value.element_size():
            self.positions, self.values, self.shape = positions, value.view(-1)[positions.long()], value.shape
            self.value = None


def note_pass(handle: Tensor) -> DenseGradient | None:
    """Count a backward pass of the layer with this handle; its `DenseGradient` if it is collecting, else None."""
    gradient = _alive.get(int(handle))
    if gradient is None:
        return None
    gradient.passes += 1
    return gradient if gradient.wanted else None
