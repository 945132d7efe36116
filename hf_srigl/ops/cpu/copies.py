"""Dense copies of layers that are too dense to gain from the kernels, kept for inference only.

A copy belongs to a parameter object and is believed only as long as the topology's plan is the same and the parameter
has the same version, the same address and the same values at 64 places (so that a write through ``weight.data``, which
leaves no version behind, is seen too). It lives here and not in the layer: nothing that copies, pickles or saves a layer
can meet it.
"""

from __future__ import annotations

import weakref

from torch import Tensor

from hf_srigl.ops.cpu import calls as cpu
from hf_srigl.ops.cpu import library
from hf_srigl.ops.cpu.plans import Plan, plan


class _Copy:
    __slots__ = ("at", "dense", "plan", "sample", "version", "weight")

    def __init__(self, weight: Tensor, dense: Tensor, topology: Plan) -> None:
        key = id(weight)
        self.weight = weakref.ref(weight, lambda _: _copies.pop(key, None))
        self.version, self.at, self.sample = weight._version, weight.data_ptr(), _sample(weight)
        self.dense, self.plan = dense, topology


_copies: dict[int, _Copy] = {}


def dense_copy(weight: Tensor, indices: Tensor, active: Tensor, n_in: int) -> Tensor:
    """The dense W (N, K) of this parameter, made on first use and made anew whenever values or topology have changed.

    Not for inference tensors, which have no version.
    """
    topology = plan(indices, active, n_in)
    kept = _copies.get(id(weight))
    if (
        kept is not None
        and kept.weight() is weight
        and kept.plan is topology
        and kept.version == weight._version
        and kept.at == weight.data_ptr()
        and kept.dense.dtype is weight.dtype
        and kept.sample == _sample(weight)
    ):
        return kept.dense
    _copies.pop(id(weight), None)  # its memory first
    dense = cpu.scatter(weight.detach(), indices, active, n_in)
    _copies[id(weight)] = _Copy(weight, dense, topology)
    return dense


def kept_copy(weight: Tensor) -> Tensor | None:
    """The copy that is kept of this parameter at the moment, good or not; for counting memory."""
    kept = _copies.get(id(weight))
    return kept.dense if kept is not None and kept.weight() is weight else None


def forget(weight: Tensor) -> None:
    """Drop the copy of this parameter, if there is one."""
    _copies.pop(id(weight), None)


def _sample(weight: Tensor) -> int:
    return int(library.loaded().srigl_sample(weight.data_ptr(), weight.numel(), weight.element_size()))
