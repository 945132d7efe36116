"""Which implementation runs a call on a CUDA device, and why; whether the Triton kernels can be used at all.

- ``triton``: the kernel for few rows (`ops.cuda.triton_kernels`)
- ``dense``: a transient dense matrix, scattered by a Triton kernel, and a matrix product
- ``reference``: the same with torch alone, without triton and for other dtypes
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch

from hf_srigl import install
from hf_srigl.ops.cuda import MAX_ROWS

_log = logging.getLogger("hf_srigl.ops")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# (density up to, rows up to which the kernel is used). NOT MEASURED: derived from bytes and gathers in docs/gpu.md, on
# the careful side. `python benchmarks/gpu.py` measures it and prints the line that belongs here.
ROW_LIMITS = ((0.06, 32), (0.11, 16), (0.21, 8), (0.35, 1))


@functools.cache
def _import() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("hf_srigl.ops.cuda.triton_kernels"), ""
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        return None, f"triton is not installed ({error}); {install.how('gpu')} brings it on Linux"


def available() -> bool:
    """Whether triton is installed."""
    return _import()[0] is not None


def reason() -> str:
    """Why the Triton kernels cannot be used; "" if they can."""
    return _import()[1]


def kernels() -> ModuleType:
    """The module `hf_srigl.ops.cuda.triton_kernels`, imported at the first call.

    Raises:
        RuntimeError: triton is not installed.
    """
    module, why = _import()
    if module is None:
        raise RuntimeError(f"there are no Triton kernels: {why}")
    return module


def concerns(device: torch.device, mode: str) -> bool:
    """Whether this file decides: on CUDA, and with HF_SRIGL_KERNEL=triton everywhere."""
    return device.type == "cuda" or mode == "triton"


def check_asked_for(device: torch.device) -> None:
    """HF_SRIGL_KERNEL=triton: say what is missing.

    Raises:
        RuntimeError: triton is missing, or the tensors are not on a CUDA device and triton does not interpret.
    """
    if not available():
        raise RuntimeError(f"HF_SRIGL_KERNEL=triton asks for the Triton kernels, but {reason()}")
    if device.type != "cuda" and not kernels().INTERPRETED:
        raise RuntimeError(
            f"HF_SRIGL_KERNEL=triton asks for the Triton kernels, but the layer is on {device.type}: move the model to "
            "a CUDA device, unset HF_SRIGL_KERNEL, or set TRITON_INTERPRET=1 before starting Python (slow, for tests)"
        )


def choose(
    mode: str, device: torch.device, rows: int, n_out: int, n_in: int, values: int, dtype: torch.dtype
) -> tuple[str, str]:
    """The implementation of a call and why: pure but for what is installed; `mode` is that of HF_SRIGL_KERNEL.

    Args:
        rows: of x. values: the budget. dtype: of x and weight.

    Raises:
        RuntimeError: as `check_asked_for`, if `mode` is triton.

    Example:
        >>> choose("reference", torch.device("cuda"), 1, 4096, 4096, 4096 * 410, torch.bfloat16)
        ('reference', 'HF_SRIGL_KERNEL=reference')
    """
    if mode == "reference":
        return "reference", "HF_SRIGL_KERNEL=reference"
    if mode == "triton":
        check_asked_for(device)
    if dtype not in DTYPES:
        name = str(dtype).removeprefix("torch.")
        return "reference", f"the Triton kernels take bfloat16, float16 and float32, not {name}"
    if not available():
        return "reference", reason()
    if mode == "triton" and rows <= MAX_ROWS:
        return "triton", "HF_SRIGL_KERNEL=triton"
    density = values / (n_out * n_in)
    limit = row_limit(density)
    return (
        "triton" if rows <= limit else "dense",
        f"{rows} rows at density {density:.3f}: the kernel is used up to {limit}",
    )


def row_limit(density: float) -> int:
    """Rows up to which the kernel is used for a layer of this density, from `ROW_LIMITS`.

    Example:
        >>> row_limit(0.05) >= row_limit(0.1) >= row_limit(0.2) >= row_limit(0.9)
        True
        >>> row_limit(0.9)
        0
    """
    return next((rows for up_to, rows in ROW_LIMITS if density <= up_to), 0)


@functools.cache
def announce(mode: str) -> None:
    """One line in a process: what runs condensed layers on GPUs, and if not the Triton kernels, why."""
    if mode == "reference":
        _log.info("condensed layers on the GPU run on scatter + dense products, because HF_SRIGL_KERNEL=reference")
    elif available():
        _log.info("condensed layers on the GPU run on Triton kernels (triton %s)", kernels().triton.__version__)
    else:
        _log.warning("condensed layers on the GPU run on the slow path, without Triton kernels: %s", reason())
