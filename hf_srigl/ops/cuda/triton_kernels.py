"""Triton kernels for NVIDIA GPUs: the product for few rows, scatter and gather. `docs/gpu.md` has the reasoning.

Every kernel works out the topology from `indices` and `active` itself. So nothing is prepared on the host, nothing can
be out of date when a CUDA graph is replayed after a topology update, and no call waits for the GPU.

Import this file only where triton is installed (`ops.cuda.choose_cuda.kernels`). With TRITON_INTERPRET=1 set before the
import the kernels run on CPU tensors, slowly and for tests only.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_srigl.ops.cuda import MAX_ROWS

_CHUNK = 4096  # neurons looked at together when active ones are counted
_THREADS = 128  # of a program: 4 warps


@triton.jit
def _topology(indices, active, n_out, n_in, budget, first, NEURONS: tl.constexpr, CHUNK: tl.constexpr):
    """For the neurons first, ..., first + NEURONS - 1: the slot where each begins, -1 if ablated; fan-in; used slots."""
    counts = tl.zeros([CHUNK], tl.int64)  # all active neurons in the lower half, those before `first` in the upper
    for start in range(0, n_out, CHUNK):
        n = start + tl.arange(0, CHUNK)
        on = tl.load(active + n, mask=n < n_out, other=0).to(tl.int64)
        counts += tl.where(n < first, on + (on << 32), on)
    count = tl.sum(counts, 0)
    before = (count >> 32).to(tl.int32)
    n_active = (count & 0xFFFFFFFF).to(tl.int32)
    n = first + tl.arange(0, NEURONS)
    on = tl.load(active + n, mask=n < n_out, other=0).to(tl.int32)
    rank = before + tl.cumsum(on, 0) - on

    # Unused slots are at the end: the fan-in is the largest k for which slot n_active * k - 1 is used. It is nearly
    # always the first guess; only a layer made with a larger budget than its mask needs the search.
    divisor = tl.maximum(n_active, 1)
    high = tl.minimum(n_in, budget // divisor)
    filled = tl.load(indices + divisor * high - 1, mask=high > 0, other=-1) >= 0
    fan_in = tl.where(filled, high, 0)
    while fan_in < high:
        middle = (fan_in + high + 1) // 2
        filled = tl.load(indices + divisor * middle - 1) >= 0
        fan_in = tl.where(filled, middle, fan_in)
        high = tl.where(filled, high, middle - 1)
    return tl.where(on != 0, rank * fan_in, -1), fan_in, n_active * fan_in


@triton.jit
def _forward(
    x,  # (n_in, ROWS): the inputs of one feature side by side
    weight,
    indices,
    active,
    bias,
    y,  # (rows, n_out)
    rows,
    n_out,
    n_in,
    budget,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
    VALUES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    first = tl.program_id(0) * NEURONS
    slot, fan_in, _ = _topology(indices, active, n_out, n_in, budget, first, NEURONS, CHUNK)
    lane, r = tl.arange(0, VALUES), tl.arange(0, ROWS)
    if ROWS == 1:  # noqa: SIM108 (a constant of the compilation, and the types differ)
        sums = tl.zeros([NEURONS, VALUES], tl.float32)
    else:
        sums = tl.zeros([NEURONS, VALUES, ROWS], tl.float32)
    # Two-dimensional before the loop, so that the loop adds scalars only and moves nothing between threads
    places = slot[:, None] + lane[None, :]
    left = tl.where(slot >= 0, fan_in, 0)[:, None] - lane[None, :]
    for start in range(0, fan_in, VALUES):
        here, at = left > start, places + start
        column = tl.load(indices + at, mask=here, other=0, eviction_policy="evict_first").to(tl.int32)
        value = tl.load(weight + at, mask=here, other=0, eviction_policy="evict_first").to(tl.float32)
        if ROWS == 1:
            sums += value * tl.load(x + column, mask=here, other=0, eviction_policy="evict_last").to(tl.float32)
        else:
            inputs = x + (column * ROWS)[:, :, None] + r[None, None, :]
            taken = tl.load(inputs, mask=here[:, :, None], other=0, eviction_policy="evict_last")
            sums += value[:, :, None] * taken.to(tl.float32)
    n = first + tl.arange(0, NEURONS)
    offset = tl.zeros([NEURONS], tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + n, mask=n < n_out, other=0).to(tl.float32)
    if ROWS == 1:
        tl.store(y + n, (tl.sum(sums, 1) + offset).to(y.dtype.element_ty), mask=n < n_out)
    else:
        result = (tl.sum(sums, 1) + offset[:, None]).to(y.dtype.element_ty)  # (NEURONS, ROWS)
        inside = (n < n_out)[:, None] & (r < rows)[None, :]
        tl.store(y + r[None, :] * n_out + n[:, None], result, mask=inside)


@triton.jit
def _scatter(
    weight,
    indices,
    active,
    dense,
    n_out,
    n_in,
    budget,
    NEURONS: tl.constexpr,
    VALUES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    first = tl.program_id(0) * NEURONS
    slot, fan_in, _ = _topology(indices, active, n_out, n_in, budget, first, NEURONS, CHUNK)
    lane, n = tl.arange(0, VALUES), first + tl.arange(0, NEURONS)
    row = dense + n.to(tl.int64)[:, None] * n_in
    zeros = tl.zeros([NEURONS, VALUES], dense.dtype.element_ty)
    for start in range(0, n_in, VALUES):
        tl.store(row + (start + lane)[None, :], zeros, mask=(n < n_out)[:, None] & (start + lane < n_in)[None, :])
    tl.debug_barrier()  # a program zeroes and writes the same rows, but not each element by the same thread
    for start in range(0, fan_in, VALUES):
        here = (slot >= 0)[:, None] & (start + lane < fan_in)[None, :]
        at = slot[:, None] + (start + lane)[None, :]
        column = tl.load(indices + at, mask=here, other=0).to(tl.int32)
        tl.store(row + column, tl.load(weight + at, mask=here, other=0), mask=here)


@triton.jit
def _gather(
    dense,
    indices,
    active,
    values,
    n_out,
    n_in,
    budget,
    NEURONS: tl.constexpr,
    VALUES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    first = tl.program_id(0) * NEURONS
    slot, fan_in, used = _topology(indices, active, n_out, n_in, budget, first, NEURONS, CHUNK)
    lane, n = tl.arange(0, VALUES), first + tl.arange(0, NEURONS)
    row = dense + n.to(tl.int64)[:, None] * n_in
    for start in range(0, fan_in, VALUES):
        here = (slot >= 0)[:, None] & (start + lane < fan_in)[None, :]
        at = slot[:, None] + (start + lane)[None, :]
        column = tl.load(indices + at, mask=here, other=0).to(tl.int32)
        tl.store(values + at, tl.load(row + column, mask=here, other=0), mask=here)
    zeros = tl.zeros([VALUES], values.dtype.element_ty)
    for start in range(used + tl.program_id(0) * VALUES, budget, tl.num_programs(0) * VALUES):
        tl.store(values + start + lane, zeros, mask=start + lane < budget)


# (neurons, values of each) that one program holds at a time. What is tried for a number of rows are those pairs for which
# each of its 128 threads has 16 or 32 products in flight: enough to hide the memory's latency, few enough for registers.
TILES = tuple((neurons, values) for neurons in (1, 2, 4, 8, 16) for values in (32, 64, 128, 256, 512))


def tiles(rows: int) -> list[tuple[int, int]]:
    """The tiles that are tried for this number of rows, a power of two."""
    return [(n, v) for n, v in TILES if n * v * rows in (16 * _THREADS, 32 * _THREADS)]


def _fitting(configs, named, **constants):
    wanted = tiles(constants["ROWS"])
    return [config for config in configs if (config.kwargs["NEURONS"], config.kwargs["VALUES"]) in wanted]


def _bench(call, quantiles):
    return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)  # ms; with a cold L2, as when decoding


INTERPRETED = not isinstance(_forward, triton.JITFunction)  # TRITON_INTERPRET=1: CPU tensors, and nothing to tune
_tuned_forward = triton.autotune(
    [triton.Config({"NEURONS": n, "VALUES": v}, num_warps=_THREADS // 32) for n, v in TILES],
    key=["n_out", "n_in", "budget", "ROWS"],
    prune_configs_by={"early_config_prune": _fitting},
    do_bench=_bench,
    cache_results=True,
)(_forward)


def forward(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    active: Tensor,
    bias: Tensor | None,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """``y = x W^T + bias``, (..., N), for at most 32 rows; a fresh contiguous tensor, sums in float32.

    Args:
        x: (..., K); x, `weight` (B,) and `bias` (N,) of one dtype, bfloat16, float16 or float32.
        indices: (B,) int16 or int32. active: (N,) bool. These are trusted: see `hf_srigl.rule.topology.find_problem`.
        tile: neurons and values of a program, powers of two; None: tuned at the first call of each size of layer.

    Raises:
        ValueError: x has more than 32 rows.
    """
    n_in, n_out, budget = x.shape[-1], active.shape[0], weight.shape[0]
    y = x.new_empty(*x.shape[:-1], n_out)
    rows = x.numel() // n_in
    if rows > MAX_ROWS:
        raise ValueError(f"expected at most {MAX_ROWS} rows, got {rows}")
    if rows == 0:
        return y
    padded = triton.next_power_of_2(rows)
    features = x.reshape(rows, n_in).t()
    if padded > 1:
        columns = x.new_empty(n_in, padded)
        columns[:, :rows].copy_(features)  # what is beyond goes into no result that is stored
        features = columns
    arguments = (features.contiguous(), weight.contiguous(), indices, active, bias, y, rows, n_out, n_in, budget)
    constants = {"HAS_BIAS": bias is not None, "ROWS": padded, "CHUNK": _CHUNK}
    with torch.cuda.device_of(x):
        if tile is None and not INTERPRETED:
            _tuned_forward[lambda meta: (triton.cdiv(n_out, meta["NEURONS"]),)](*arguments, **constants)
        else:
            neurons, values = tile or tiles(padded)[-1]
            _forward[(triton.cdiv(n_out, neurons),)](*arguments, **constants, NEURONS=neurons, VALUES=values)
    return y


def scatter(weight: Tensor, indices: Tensor, active: Tensor, n_in: int) -> Tensor:
    """The dense W (N, K), of the dtype of `weight`: what `hf_srigl.rule.topology.scatter` computes."""
    n_out = active.shape[0]
    dense = weight.new_empty(n_out, n_in)
    neurons, values = 4, 512
    with torch.cuda.device_of(weight):
        _scatter[(triton.cdiv(n_out, neurons),)](
            weight.contiguous(),
            indices,
            active,
            dense,
            n_out,
            n_in,
            weight.shape[0],
            NEURONS=neurons,
            VALUES=values,
            CHUNK=_CHUNK,
        )
    return dense


def gather(dense: Tensor, indices: Tensor, active: Tensor) -> Tensor:
    """The values (B,) of a dense (N, K) at the slots, 0 in unused ones: what `hf_srigl.rule.topology.gather` computes."""
    n_out, n_in = dense.shape
    budget = indices.shape[0]
    values_out = dense.new_empty(budget)
    neurons, values = 4, 512
    with torch.cuda.device_of(dense):
        _gather[(triton.cdiv(n_out, neurons),)](
            dense.contiguous(),
            indices,
            active,
            values_out,
            n_out,
            n_in,
            budget,
            NEURONS=neurons,
            VALUES=values,
            CHUNK=_CHUNK,
        )
    return values_out
