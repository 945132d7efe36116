"""The native forward kernel by itself, called again and again and with nothing in a cache, in microseconds.

    python benchmarks/caches.py --rows 1 8 64

Between two "cold" calls 48 MB are written. The call goes straight to the compiled library, so that neither Python nor
PyTorch is measured. "ns" is per kept value and vector of 16 rows: one fused multiply-add of AVX-512, with the load of 16
numbers of x that it needs; one such load per cycle is what the processor of the results can do.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import write

from hf_srigl.bench.layers import SHAPES, half, layer_pair
from hf_srigl.ops.cpu import calls as cpu
from hf_srigl.ops.cpu import library
from hf_srigl.ops.cpu.plans import plan


def kernel(layer, x: torch.Tensor):
    """One call of the kernel, and the tensors that it uses."""
    y = torch.empty(x.shape[0], layer.out_features, dtype=x.dtype)
    prepared = plan(layer.indices, layer.active, layer.in_features)
    pointers = [t.data_ptr() for t in (layer.indices, layer.weight, layer.bias, x)]
    rest = (x.stride(0), y.data_ptr(), x.shape[0], cpu.DTYPES[x.dtype], 1)
    forward = library.loaded().srigl_forward
    return lambda: forward(prepared.handle, *pointers, *rest), (prepared, y, x)


def median(call, between, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        between()
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return statistics.median(times)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    other = torch.zeros(12 << 20)
    lines = ["| out x in | dtype | rows | warm us | cold us | warm ns | cold ns |", "|---|---|---|---|---|---|---|"]
    for n_out, n_in in SHAPES:
        condensed = layer_pair(n_out, n_in, options.sparsity)[1]
        for layer in (condensed, half(condensed)):
            for rows in options.rows:
                x = torch.randn(rows, n_in).to(layer.weight.dtype)
                call, alive = kernel(layer, x)
                call()
                warm, cold = (median(call, f, options.repeats) for f in (lambda: None, lambda: other.add_(1)))
                work = layer.budget * -(-rows // 16) / 1e9
                name = str(x.dtype).removeprefix("torch.")
                lines.append(
                    f"| {n_out}x{n_in} | {name} | {rows} | {warm * 1e6:.0f} | {cold * 1e6:.0f} "
                    f"| {warm / work:.2f} | {cold / work:.2f} |"
                )
                del alive
    write("caches", "\n".join(lines))


if __name__ == "__main__":
    main()
