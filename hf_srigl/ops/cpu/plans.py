"""Topologies as the CPU kernels want them: checked completely, prepared once, never stale.

A plan is found through the tensor objects `indices` and `active` and believed only as long as neither was written to or
given other memory: their version counters and addresses must be what they were. Otherwise it is found by content. What
the kernels rely on is checked again then, so neither a collision of fingerprints nor a file can mislead them.
"""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor

from hf_srigl.ops.cpu import library

# Plans of tensor objects that may live for one call only (aliases, inference tensors) are kept until they take more.
RECENT_BYTES = 32 << 20

_Key = tuple[int, torch.dtype, int, int, int]


class Plan:
    """What the kernels derive from one topology; owns the C object. Checked completely when made."""

    __slots__ = ("__weakref__", "_free", "handle", "n_in", "n_out", "nbytes", "slots")

    def __init__(self, indices: Tensor, active: Tensor, n_in: int) -> None:
        self.handle: int | None = None
        lib, out = library.loaded(), ctypes.c_void_p()
        self._free = lib.srigl_plan_free
        self.n_in, self.n_out, self.slots = n_in, active.numel(), indices.numel()
        library.check(
            lib.srigl_plan_create(
                indices.data_ptr(),
                indices.element_size(),
                active.data_ptr(),
                self.n_out,
                n_in,
                self.slots,
                ctypes.byref(out),
            )
        )
        self.handle = out.value
        self.nbytes = int(lib.srigl_plan_bytes(self.handle))

    def __del__(self) -> None:
        if self.handle:
            self._free(self.handle)


class _Known:
    """The plan of one pair of tensor objects, and how to see that they are unchanged."""

    __slots__ = ("active", "active_at", "active_version", "indices", "indices_at", "indices_version", "n_in", "plan")

    def __init__(self, indices: Tensor, active: Tensor, plan: Plan) -> None:
        key = id(indices)
        self.indices = weakref.ref(indices, lambda _: _known.pop(key, None))
        self.active = weakref.ref(active)
        self.indices_version, self.active_version = indices._version, active._version
        self.indices_at, self.active_at = indices.data_ptr(), active.data_ptr()
        self.plan, self.n_in = plan, plan.n_in


_known: dict[int, _Known] = {}
_by_content: weakref.WeakValueDictionary[_Key, Plan] = weakref.WeakValueDictionary()
_recent: dict[_Key, Plan] = {}  # in order of use


def plan(indices: Tensor, active: Tensor, n_in: int) -> Plan:
    """The prepared topology: made on first use, made anew when `indices` or `active` has changed.

    Changes are seen through version counters and addresses. A write that touches neither (through ``tensor.data``,
    `torch.distributed` or another library's pointer) must be followed by `forget`.

    Raises:
        TypeError, ValueError: the tensors are not a condensed topology with `n_in` inputs.
    """
    known = _known.get(id(indices))
    if (
        known is not None
        and known.indices() is indices
        and known.active() is active
        and known.n_in == n_in
        and known.indices_version == indices._version
        and known.active_version == active._version
        and known.indices_at == indices.data_ptr()
        and known.active_at == active.data_ptr()
        and known.plan.slots == indices.numel()
        and known.plan.n_out == active.numel()
    ):
        return known.plan
    return _find(indices, active, n_in)


def forget(indices: Tensor) -> None:
    """Drop the prepared topology of `indices`, after a write that its version counter does not show."""
    _known.pop(id(indices), None)


def _find(indices: Tensor, active: Tensor, n_in: int) -> Plan:
    if indices.dtype not in (torch.int16, torch.int32) or indices.dim() != 1:
        raise TypeError(f"indices must be (B,) int16 or int32, got {tuple(indices.shape)} {indices.dtype}")
    if active.dtype is not torch.bool or active.dim() != 1:
        raise TypeError(f"active must be (N,) bool, got {tuple(active.shape)} {active.dtype}")
    if not (indices.is_contiguous() and active.is_contiguous()):
        raise ValueError("indices and active must be contiguous")
    if indices.device.type != "cpu" or active.device.type != "cpu":
        raise ValueError(f"indices and active must be on the CPU, got {indices.device} and {active.device}")
    lib = library.loaded()
    fingerprint = lib.srigl_fingerprint(
        indices.data_ptr(), indices.element_size(), active.data_ptr(), active.numel(), indices.numel()
    )
    key = (fingerprint, indices.dtype, active.numel(), n_in, indices.numel())
    found = _by_content.get(key)
    if found is None or not lib.srigl_plan_fits(found.handle, indices.data_ptr(), active.data_ptr()):
        found = _by_content[key] = Plan(indices, active, n_in)
    versioned = not (indices.is_inference() or active.is_inference())
    if not versioned or id(indices) not in _known:
        _keep(key, found)
    if versioned:
        _known[id(indices)] = _Known(indices, active, found)
    return found


def _keep(key: _Key, found: Plan) -> None:
    _recent.pop(key, None)
    _recent[key] = found
    total = sum(plan.nbytes for plan in _recent.values())
    while total > RECENT_BYTES and len(_recent) > 1:
        total -= _recent.pop(next(iter(_recent))).nbytes
