"""Where a layer's dense gradient is collected on the steps that update its topology.

The backward operator is opaque to autograd and to `torch.compile`, so it cannot return a gradient only on some steps
without recompiling. It looks up the layer's `DenseGradient` by a handle instead, and asks it at run time. The handle is
a tensor because a Python integer would be a constant of the compiled graph: one recompilation for each layer.
"""

from __future__ import annotations

import itertools
import weakref

import torch
from torch import Tensor

_handles = itertools.count(1)
_alive: weakref.WeakValueDictionary[int, DenseGradient] = weakref.WeakValueDictionary()


class DenseGradient:
    """The sum over backward passes of one layer's ``gy^T x``, (N, K), while `wanted`; float32 or wider.

    Copies (`copy.deepcopy`, pickle) start empty and under a handle of their own, so that a copied layer never writes
    into the collection of its original.

    Example:
        >>> gradient = DenseGradient()
        >>> gradient.start(); gradient.add(torch.ones(2, 3)); gradient.add(torch.ones(2, 3))
        >>> gradient.value[0, 0]
        tensor(2.)
    """

    def __init__(self) -> None:
        number = next(_handles)
        self.handle = torch.tensor(number, device="cpu")  # 0-d int64; never on meta, whatever the context
        self.wanted = False
        self.value: Tensor | None = None
        _alive[number] = self

    def __reduce__(self) -> tuple[type[DenseGradient], tuple[()]]:
        return DenseGradient, ()

    def start(self) -> None:
        """Forget what was collected and collect from now on."""
        self.wanted, self.value = True, None

    def stop(self) -> None:
        """Forget what was collected and collect no more."""
        self.wanted, self.value = False, None

    def add(self, dense: Tensor) -> None:
        """Add one backward pass's dense gradient, (N, K); the tensor must not be used by the caller afterwards."""
        if self.value is None:
            self.value = dense if dense.dtype in (torch.float32, torch.float64) else dense.float()
        else:
            self.value += dense


def collection(handle: Tensor) -> DenseGradient | None:
    """The live `DenseGradient` of this handle if it is collecting, else None."""
    gradient = _alive.get(int(handle))
    return gradient if gradient is not None and gradient.wanted else None
