"""Compile every Triton kernel to machine code for the GPU generations named (90: H100, 80: A100). Needs no GPU.

    python tests/ops/compile_triton.py 90            # one tile of each kernel
    python tests/ops/compile_triton.py 90 --all      # every tile that may be tuned

Prints registers and spilled bytes of each, as the assembler reports them.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_srigl.ops.cuda import triton_kernels as kernels

FORWARD = ("x", "weight", "indices", "active", "bias", "y", "rows", "n_out", "n_in", "budget")
SCATTER = ("weight", "indices", "active", "dense", "n_out", "n_in", "budget")
GATHER = ("dense", "indices", "active", "values", "n_out", "n_in", "budget")
TYPES = {"indices": "*i16", "active": "*i1"} | dict.fromkeys(("rows", "n_out", "n_in", "budget"), "i32")


def compiled(function, names, constants, generation):
    """The machine code of one kernel for bf16 and int16; pointers and sizes are multiples of 16, as in usual layers."""
    signature = {name: TYPES.get(name, "*bf16") for name in names} | dict.fromkeys(constants, "constexpr")
    even = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name != "rows"}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=even)
    return triton.compile(source, target=GPUTarget("cuda", generation, 32), options={"num_warps": 4})


def report(kernel):
    """ "registers: .., bytes spilled: .." of the machine code."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr).groups()
    return f"registers: {registers}, bytes spilled: {stack}"


def main(generations, everything):
    for generation in generations:
        for rows in (1, 2, 4, 8, 16, 32):
            tiles = kernels.tiles(rows)
            for neurons, values in tiles if everything else tiles[-1:]:
                constants = {"HAS_BIAS": True, "ROWS": rows, "NEURONS": neurons, "VALUES": values, "CHUNK": 4096}
                kernel = compiled(kernels._forward, FORWARD, constants, generation)
                print(f"sm_{generation} forward, {rows} rows, tile {neurons} x {values}: {report(kernel)}")
        constants = {"NEURONS": 4, "VALUES": 512, "CHUNK": 4096}
        for name, function, names in (("scatter", kernels._scatter, SCATTER), ("gather", kernels._gather, GATHER)):
            print(f"sm_{generation} {name}: {report(compiled(function, names, constants, generation))}")


if __name__ == "__main__":
    main([int(generation) for generation in sys.argv[1:] if generation.isdigit()], "--all" in sys.argv)
