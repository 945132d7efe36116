"""Which implementation runs a call of the operator, and why.

- ``cpu``: the native kernels (`ops.cpu`)
- ``dense``: a transient dense matrix, scattered natively, and a matrix product
- ``reference``: the same with torch alone (`ops.reference`), for other devices and dtypes and without compiled kernels

Calls on CUDA devices are decided in `ops.choose_cuda`.

Between the first two, the cheaper is estimated per call. The estimate needs only the ratio of two costs that move
together from machine to machine: nanoseconds per kept value (native) and per weight of the dense matrix, each as a
function of the number of rows. They are medians on one AVX-512 core (`benchmarks/layers.py`); more threads divide both.
"""

from __future__ import annotations

import functools
import logging
import os
from bisect import bisect_left
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hf_srigl.ops import choose_cuda, cpu, library

VARIABLE = "HF_SRIGL_KERNEL"
_MODES = ("auto", "reference", "cpu", "triton")
_log = logging.getLogger("hf_srigl.ops")

_ROWS = (1, 2, 8, 16, 64, 256, 2048)
# ns per kept value and per dense weight, for all rows of the call together; beyond the table both grow like the rows.
_NATIVE = (0.26, 0.50, 0.50, 0.65, 2.15, 8.6, 72.0)
_DENSE = {
    torch.float32: (0.068, 0.13, 0.30, 0.47, 1.42, 5.1, 40.0),
    torch.bfloat16: (0.080, 0.10, 0.13, 0.20, 0.63, 2.4, 19.0),
}
_ZERO, _WRITE = 0.4, 1.0  # scattering: ns for zeroing a dense weight, for writing a value
_SLOWER = {"avx512": 1.0, "avx2": 1.15, "neon": 1.0, "portable": 3.0}  # than AVX-512


class Condensed(Protocol):
    """What the choice needs to know of a layer; a `hf_srigl.CondensedLinear` has it."""

    in_features: int
    out_features: int

    @property
    def weight(self) -> Tensor: ...


class Choice(NamedTuple):
    """The implementation of a call, "cpu", "triton", "dense" or "reference", and why it is that one."""

    name: str
    reason: str


def kernel_for(layer: Condensed, rows: int, dtype: torch.dtype | None = None) -> Choice:
    """What a call of `layer` on `rows` rows of `dtype` (default: the layer's own) uses on this machine, and why.

    Raises:
        ValueError: HF_SRIGL_KERNEL is none of auto, reference, cpu, triton.
        RuntimeError: it is cpu, but the package was installed without compiled kernels; or it is triton, but triton or
            a CUDA device is missing.

    Example:
        >>> from hf_srigl import CondensedLinear
        >>> kernel_for(CondensedLinear(64, 32, budget=128, dtype=torch.float64), rows=8)
        Choice(name='reference', reason='the native kernels take float32 and bfloat16, not float64')
    """
    weight = layer.weight
    dtype = weight.dtype if dtype is None else dtype
    choice = mode()
    if choose_cuda.concerns(weight.device, choice):
        sizes = (rows, layer.out_features, layer.in_features, weight.shape[0])
        return Choice(*choose_cuda.choose(choice, weight.device, *sizes, dtype))
    if weight.device.type != "cpu":
        return Choice("reference", f"the native kernels run on the CPU, not on {weight.device.type}")
    if dtype not in cpu.DTYPES:
        return Choice("reference", f"the native kernels take float32 and bfloat16, not {_name(dtype)}")
    if choice == "reference":
        return Choice("reference", f"{VARIABLE}=reference")
    if not library.available():
        return Choice("reference", library.reason())
    if choice == "cpu":
        return Choice("cpu", f"{VARIABLE}=cpu ({library.isa()})")
    n_out, n_in, values = layer.out_features, layer.in_features, weight.shape[0]
    native, dense = costs(rows, n_out, n_in, values, dtype, library.isa())
    return Choice(
        "cpu" if native <= dense else "dense",
        f"{rows} rows of {n_out}x{n_in} {_name(dtype)} at density {values / (n_out * n_in):.3f}: native "
        f"({library.isa()}) is estimated at {native / 1e3:.0f} us, scatter + dense at {dense / 1e3:.0f} us on one core",
    )


def implementation(x: Tensor, weight: Tensor, active: Tensor, bias: Tensor | None = None) -> str:
    """`kernel_for`'s name for a call with these tensors; quick, and logs once what is in use."""
    n_in = x.shape[-1]
    choice = asked_for()
    sizes = (x.numel() // n_in, active.shape[0], n_in, weight.shape[0])
    if choose_cuda.concerns(x.device, choice):
        same = weight.dtype is x.dtype and (bias is None or bias.dtype is x.dtype)
        return _on_cuda(choice, x.device, same, *sizes, x.dtype)
    if not x.is_cpu:
        return "reference"
    return _implementation(choice, cpu.supports(x, weight, bias), *sizes, x.dtype)


@functools.lru_cache(maxsize=4096)
def _on_cuda(
    choice: str, device: torch.device, same: bool, rows: int, n_out: int, n_in: int, values: int, dtype: torch.dtype
) -> str:
    mode()  # raises on a wrong value
    name, _ = choose_cuda.choose(choice, device, rows, n_out, n_in, values, dtype)
    choose_cuda.announce(choice)
    return name if same else "reference"


@functools.lru_cache(maxsize=4096)
def _implementation(
    choice: str, supported: bool, rows: int, n_out: int, n_in: int, values: int, dtype: torch.dtype
) -> str:
    mode()  # raises on a wrong value
    _announce(choice)
    if choice == "reference" or not library.available() or not supported:
        return "reference"
    if choice == "cpu":
        return "cpu"
    native, dense = costs(rows, n_out, n_in, values, dtype, library.isa())
    return "cpu" if native <= dense else "dense"


def asked_for() -> str:
    """The value of HF_SRIGL_KERNEL as it is; "auto" if it is not set."""
    return os.environ.get(VARIABLE, "auto")


def mode() -> str:
    """The value of HF_SRIGL_KERNEL, checked."""
    choice = asked_for()
    if choice not in _MODES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(_MODES)}, got {choice!r}")
    if choice == "cpu" and not library.available():
        raise RuntimeError(f"{VARIABLE}=cpu asks for the native kernels, but {library.reason()}")
    return choice


def costs(rows: int, n_out: int, n_in: int, values: int, dtype: torch.dtype, isa: str) -> tuple[float, float]:
    """Estimated ns on one core for one product: (native, scatter + dense).

    `values` is the number of kept weights. A gradient costs about what the product costs, on either side.

    Example:
        >>> native, dense = costs(64, 3072, 768, values=3072 * 77, dtype=torch.float32, isa="avx512")
        >>> native < dense
        True
    """
    rows = max(1, rows)
    native = _cost(_NATIVE, rows) * values * _SLOWER[isa]
    dense = _cost(_DENSE[dtype], rows) * n_out * n_in + _ZERO * n_out * n_in + _WRITE * values
    return native, dense


def _cost(table: tuple[float, ...], rows: int) -> float:
    if rows >= _ROWS[-1]:
        return table[-1] * rows / _ROWS[-1]
    i = bisect_left(_ROWS, rows)
    if _ROWS[i] == rows:
        return table[i]
    low, high = _ROWS[i - 1], _ROWS[i]
    return table[i - 1] + (table[i] - table[i - 1]) * (rows - low) / (high - low)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _announce(choice: str) -> None:
    """One line for each mode in a process: which kernels run condensed layers on CPUs, and if not the native ones, why."""
    if choice == "reference":
        _log.info("condensed layers on the CPU run on scatter + dense products, because %s=reference", VARIABLE)
    elif library.available():
        threads = "threads" if library.loaded().srigl_has_threads() else "one thread, as it was built without OpenMP"
        _log.info("condensed layers on the CPU run on native kernels (%s, %s)", library.isa(), threads)
    else:
        _log.warning("condensed layers on the CPU run on the slow path, without native kernels: %s", library.reason())
