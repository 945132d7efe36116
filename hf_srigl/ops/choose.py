"""Which implementation runs a call of the operator, and why.

- ``cpu``: the native kernels (`ops.cpu.calls`)
- ``copy``: a matrix product with a dense copy that is kept between calls (`ops.cpu.copies`), in inference only
- ``dense``: a transient dense matrix, scattered natively, and a matrix product
- ``reference``: the same with torch alone (`ops.reference`), for other devices and dtypes and without compiled kernels

Calls on CUDA devices are decided in `ops.cuda.choose_cuda`.

Between the first three, the cheaper is estimated per call. The estimate needs only the ratio of two costs that move
together from machine to machine: nanoseconds per kept value (native) and per weight of the dense matrix, each as a
function of the number of rows. They are medians on one AVX-512 core (`hf-srigl bench --sparsity 0.6 0.8`, and single layers
in a loop); more threads divide both.
"""

from __future__ import annotations

import functools
import logging
import os
from bisect import bisect_left
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hf_srigl.ops.cpu import calls as cpu
from hf_srigl.ops.cpu import library
from hf_srigl.ops.cuda import choose_cuda

VARIABLE = "HF_SRIGL_KERNEL"
COPY_VARIABLE = "HF_SRIGL_DENSE_COPY"
_MODES = ("auto", "reference", "cpu", "triton")
_log = logging.getLogger("hf_srigl.ops")

_ROWS = (1, 2, 8, 16, 64, 256, 2048)
# ns per kept value and per dense weight, for all rows of the call together; beyond the table both grow like the rows.
# First with layers that are in no cache, as the layers of a large model are, then called again and again.
_NATIVE = {
    torch.float32: ((0.38, 0.72, 0.76, 0.95, 3.4, 10.5, 72.0), (0.21, 0.60, 0.50, 0.62, 2.2, 8.9, 72.0)),
    torch.bfloat16: ((0.32, 0.62, 0.65, 0.85, 3.0, 9.4, 67.0), (0.21, 0.59, 0.47, 0.58, 2.1, 8.6, 67.0)),
}
_DENSE = {
    torch.float32: ((0.25, 0.50, 0.55, 0.74, 1.68, 5.5, 43.0), (0.071, 0.14, 0.36, 0.54, 1.53, 5.3, 43.0)),
    torch.bfloat16: ((0.21, 0.20, 0.28, 0.36, 0.80, 2.6, 19.5), (0.083, 0.084, 0.131, 0.20, 0.64, 2.5, 19.5)),
}
_ZERO, _WRITE = 0.4, 1.0  # scattering: ns for zeroing a dense weight, for writing a value
_WORTH_A_COPY = 1.03  # a copy costs memory: only if the product with it is faster by more than this
_FROM_DENSITY = 0.25  # ... and below this density only if it is so with layers that are in no cache
_SLOWER = {"avx512": 1.0, "avx2": 1.15, "neon": 1.0, "portable": 3.0}  # than AVX-512


class Condensed(Protocol):
    """What the choice needs to know of a layer; a `hf_srigl.CondensedLinear` has it."""

    in_features: int
    out_features: int
    training: bool

    @property
    def weight(self) -> Tensor: ...


class Choice(NamedTuple):
    """The implementation of a call, "cpu", "copy", "triton", "dense" or "reference", and why it is that one."""

    name: str
    reason: str


class Costs(NamedTuple):
    """Estimated ns on one core for one product: by the native kernels, by scattering, by the matrix product alone."""

    native: float
    scatter: float
    product: float


def kernel_for(layer: Condensed, rows: int, dtype: torch.dtype | None = None) -> Choice:
    """What a call of `layer` on `rows` rows of `dtype` (default: the layer's own) would use right now, and why.

    "Right now" matters for layers too dense to gain: in eval mode and without gradients they may keep a dense copy.

    Raises:
        ValueError: HF_SRIGL_KERNEL is none of auto, reference, cpu, triton, or HF_SRIGL_DENSE_COPY neither 0 nor 1.
        RuntimeError: HF_SRIGL_KERNEL is cpu, but the package was installed without compiled kernels; or it is triton, but
            triton or a CUDA device is missing.

    Example:
        >>> from hf_srigl import CondensedLinear
        >>> kernel_for(CondensedLinear(64, 32, budget=128, dtype=torch.float64), rows=8)
        Choice(name='reference', reason='the native kernels take float32 and bfloat16, not float64')
    """
    weight = layer.weight
    dtype = weight.dtype if dtype is None else dtype
    mode, sizes = asked_for(), (rows, layer.out_features, layer.in_features, weight.shape[0])
    _check(mode)
    if choose_cuda.concerns(weight.device, mode):
        return Choice(*choose_cuda.choose(mode, weight.device, *sizes, dtype))
    may_keep = not (layer.training or torch.is_grad_enabled() or weight.is_inference()) and dtype is weight.dtype
    return _choice(mode, weight.device.type, dtype, True, may_keep, *sizes)


def implementation(
    x: Tensor, weight: Tensor, active: Tensor, bias: Tensor | None = None, may_keep: bool = False
) -> str:
    """`kernel_for`'s name for a call with these tensors; quick, and logs once what is in use.

    Args:
        may_keep: the call is one of inference and `weight` the layer's own parameter, so that a copy of it makes sense.
    """
    mode, n_in = asked_for(), x.shape[-1]
    sizes = (x.numel() // n_in, active.shape[0], n_in, weight.shape[0])
    if choose_cuda.concerns(x.device, mode):
        same = weight.dtype is x.dtype and (bias is None or bias.dtype is x.dtype)
        return _on_cuda(mode, x.device, same, *sizes, x.dtype)
    may_keep = may_keep and not weight.is_inference()
    device = "cpu" if x.is_cpu else x.device.type
    choice = _choice(mode, device, x.dtype, cpu.same_types(x, weight, bias), may_keep, *sizes)
    if device == "cpu":
        _announce(mode)
    return choice.name


@functools.lru_cache(maxsize=4096)
def _on_cuda(
    mode: str, device: torch.device, same: bool, rows: int, n_out: int, n_in: int, values: int, dtype: torch.dtype
) -> str:
    _check(mode)
    name, _ = choose_cuda.choose(mode, device, rows, n_out, n_in, values, dtype)
    choose_cuda.announce(mode)
    return name if same else "reference"


def asked_for() -> str:
    """The value of HF_SRIGL_KERNEL as it is; "auto" if it is not set."""
    return os.environ.get(VARIABLE, "auto")


def _choice(mode: str, device: str, dtype: torch.dtype, same_types: bool, may_keep: bool, *sizes: int) -> Choice:
    choice = _decide(mode, device, dtype, same_types, may_keep, *sizes)
    if choice.name == "copy" and not _copies_wanted():
        return _decide(mode, device, dtype, same_types, False, *sizes)
    return choice


def _copies_wanted() -> bool:
    wanted = os.environ.get(COPY_VARIABLE, "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"{COPY_VARIABLE} must be 0 or 1, got {wanted!r}")
    return wanted == "1"


@functools.lru_cache(maxsize=4096)
def _decide(
    mode: str,
    device: str,
    dtype: torch.dtype,
    same_types: bool,
    may_keep: bool,
    rows: int,
    n_out: int,
    n_in: int,
    values: int,
) -> Choice:
    _check(mode)
    if device != "cpu":
        return Choice("reference", f"the native kernels run on the CPU, not on {device}")
    if dtype not in cpu.DTYPES:
        return Choice("reference", f"the native kernels take float32 and bfloat16, not {_name(dtype)}")
    if not same_types:
        return Choice("reference", "the native kernels take x, values and bias of one dtype on one device")
    if mode == "reference":
        return Choice("reference", f"{VARIABLE}=reference")
    if not library.available():
        return Choice("reference", library.reason())
    if mode == "cpu":
        return Choice("cpu", f"{VARIABLE}=cpu ({library.isa()})")
    density, isa = values / (n_out * n_in), library.isa()
    estimates = [costs(rows, n_out, n_in, values, dtype, isa, cached) for cached in (False, True)]
    what = f"{rows} rows of {n_out}x{n_in} {_name(dtype)} at density {density:.3f}: native ({isa}) is estimated at"
    if may_keep:
        for native, _, product in estimates if density > _FROM_DENSITY else estimates[:1]:
            if native > _WORTH_A_COPY * product:
                return Choice("copy", f"{what} {_us(native)}, a product with a kept dense copy at {_us(product)}")
    native, scatter, product = estimates[0]
    name = "cpu" if may_keep or native <= scatter + product else "dense"
    other = "a product with a kept dense copy" if may_keep else "scatter + dense"
    return Choice(name, f"{what} {_us(native)}, {other} at {_us(product + (0 if may_keep else scatter))} on one core")


def _check(mode: str) -> None:
    if mode not in _MODES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(_MODES)}, got {mode!r}")
    if mode == "cpu" and not library.available():
        raise RuntimeError(f"{VARIABLE}=cpu asks for the native kernels, but {library.reason()}")


def costs(rows: int, n_out: int, n_in: int, values: int, dtype: torch.dtype, isa: str, cached: bool = False) -> Costs:
    """The estimate for `values` kept weights. A gradient costs about what the product costs, on either side.

    Args:
        cached: the layer is called again and again, as single layers are in benchmarks and hardly ever in models.

    Example:
        >>> native, scatter, product = costs(64, 3072, 768, values=3072 * 77, dtype=torch.float32, isa="avx512")
        >>> native < product
        True
    """
    rows, size = max(1, rows), n_out * n_in
    native = _cost(_NATIVE[dtype][cached], rows) * values * _SLOWER[isa]
    return Costs(native, _ZERO * size + _WRITE * values, _cost(_DENSE[dtype][cached], rows) * size)


def _cost(table: tuple[float, ...], rows: int) -> float:
    if rows >= _ROWS[-1]:
        return table[-1] * rows / _ROWS[-1]
    i = bisect_left(_ROWS, rows)
    if _ROWS[i] == rows:
        return table[i]
    low, high = _ROWS[i - 1], _ROWS[i]
    return table[i - 1] + (table[i] - table[i - 1]) * (rows - low) / (high - low)


def _us(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e3:.0f} us"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _announce(mode: str) -> None:
    """One line for each mode in a process: which kernels run condensed layers on CPUs, and if not the native ones, why."""
    if mode == "reference":
        _log.info("condensed layers on the CPU run on scatter + dense products, because %s=reference", VARIABLE)
    elif library.available():
        threads = "threads" if library.loaded().srigl_has_threads() else "one thread, as it was built without OpenMP"
        _log.info("condensed layers on the CPU run on native kernels (%s, %s)", library.isa(), threads)
    else:
        _log.warning("condensed layers on the CPU run on the slow path, without native kernels: %s", library.reason())
