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
from torch.utils.hooks import RemovableHandle

_handles = itertools.count(1)
_alive: weakref.WeakValueDictionary[int, DenseGradient] = weakref.WeakValueDictionary()


class DenseGradient:
    """The sum of one layer's ``gy^T x``, (N, K), over the backward passes that reach its ``weight.grad``; float32 or wider.

    What the backward operator adds is pending until the layer's weight receives its gradient in the same backward pass;
    then `commit` makes it count. So a pass whose gradients are zeroed or never accumulated (a skipped batch,
    `torch.autograd.grad`) does not end up in a topology. `prune` keeps only what an update can depend on, so that the
    dense gradients of all layers need not exist together.

    Copies (`copy.deepcopy`, pickle) start empty and under a handle of their own, so that a copied layer never writes
    into the collection of its original.

    Example:
        >>> gradient = DenseGradient()
        >>> gradient.start(); gradient.add(torch.ones(2, 3)); gradient.commit(afresh=True)
        >>> gradient.add(torch.ones(2, 3)); gradient.commit(afresh=False)
        >>> gradient.dense()[0, 0]
        tensor(2.)
    """

    value: Tensor | None  # the dense gradient, or once it is pruned ...
    positions: Tensor | None  # ... the flat positions kept, (P,), and
    values: Tensor | None  # ... the gradient there, (P,)
    shape: torch.Size | None
    pending: Tensor | None  # of the backward pass in progress

    def __init__(self) -> None:
        number = next(_handles)
        self.handle = torch.tensor(number, device="cpu")  # 0-d int64; never on meta, whatever the context
        self._hook: RemovableHandle | None = None
        self._every_pass = False
        self.stop()
        _alive[number] = self

    def __reduce__(self) -> tuple[type[DenseGradient], tuple[()]]:
        return DenseGradient, ()

    def watch(self, weight: Tensor, arrives: Callable[[Tensor], None] | None) -> None:
        """Have `arrives` called whenever a backward pass has the whole gradient of `weight`; None: no longer.

        There is one such call at most: a new one takes the place of that of an earlier, perhaps failed, training.
        """
        self._every_pass = False
        if self._hook is not None:
            self._hook.remove()
        self._hook = None if arrives is None else weight.register_hook(arrives)

    def count_every_pass(self) -> None:
        """Commit whatever is added at once: for FSDP2, under which the weight that is trained has no hook to call.

        Every backward pass between two steps counts then, also one whose gradients are thrown away.
        """
        self._every_pass = True

    def start(self) -> None:
        """Forget what was collected and collect from now on."""
        self.stop()
        self.wanted = True

    def stop(self) -> None:
        """Forget what was collected and collect no more."""
        self.wanted = False
        self.pending = self.value = self.positions = self.values = self.shape = None
        self._backward_pass: int | None = None

    @property
    def seen(self) -> bool:
        """Whether there is anything: the layer took part in a backward pass that counts."""
        return self.value is not None or self.values is not None

    def add(self, dense: Tensor) -> None:
        """Add the dense gradient (N, K) of one use of the layer; the tensor must not be used by the caller afterwards."""
        backward_pass = torch._C._current_graph_task_id()
        if backward_pass != self._backward_pass:
            self.pending, self._backward_pass = None, backward_pass  # what an earlier pass has left never arrived
        dense = dense if dense.dtype in (torch.float32, torch.float64) else dense.float()
        if self.pending is None:
            self.pending = dense
        else:
            self.pending += dense
        if self._every_pass:
            self.commit(afresh=False)

    def commit(self, afresh: bool) -> None:
        """The weight receives its gradient: count what is pending.

        Args:
            afresh: gradients were zeroed since the last commit, so what was committed before does not count.
        """
        if self.pending is None:
            return
        if afresh:
            self.value = self.positions = self.values = None
        if self.values is not None:
            raise RuntimeError(
                "a second backward pass came for the last micro-batch of an optimizer step that updates the topology, after "
                "the dense gradient was pruned: add the losses and call backward once for each micro-batch"
            )
        if self.value is None:
            self.value = self.pending
        else:
            self.value += self.pending
        self.pending = None

    def prune(self, decisive: Callable[[Tensor], Tensor]) -> None:
        """The collection is complete: keep only what an update can depend on, if that is smaller.

        Args:
            decisive: complete (N, K) gradient -> flat positions that are worth keeping.
        """
        if self.value is None or not bool(self.is_finite()):
            return  # if it is not finite, the update will be postponed
        positions = decisive(self.value)
        positions = positions.int() if self.value.numel() < 2**31 else positions
        kept_bytes = positions.numel() * (positions.element_size() + self.value.element_size())
        if kept_bytes < self.value.numel() * self.value.element_size():
            self.positions, self.shape = positions, self.value.shape
            self.values = self.value.view(-1)[positions.long()]
            self.value = None

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
        return torch.tensor(True) if held is None else torch.isfinite(torch.stack(torch.aminmax(held))).all()


def collection(handle: Tensor | None) -> DenseGradient | None:
    """The live `DenseGradient` of this handle if it is collecting, else None."""
    gradient = None if handle is None else _alive.get(int(handle))
    return gradient if gradient is not None and gradient.wanted else None


def watched(handle: Tensor | None) -> bool:
    """Whether a `hf_srigl.SRigL` trains the layer of this handle."""
    gradient = None if handle is None else _alive.get(int(handle))
    return gradient is not None and gradient._hook is not None
