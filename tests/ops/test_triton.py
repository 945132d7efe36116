"""The Triton kernels in triton's interpreter, compiled for real GPUs, and where triton is missing.

The interpreter is chosen when triton is imported, so its cases (triton_cases.py) run in a process of their own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(*command, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_SRIGL", "TRITON_"))}
    environment |= {"TRITON_DEFAULT_FP_FUSION": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_triton
def test_in_the_interpreter():
    options = ("-o", "addopts=--strict-markers", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = run("-m", "pytest", *options, "tests/ops/triton_cases.py", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    assert "passed" in done.stdout


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="the assembler comes with triton on Linux only")
def test_every_kernel_compiles_for_nvidia_gpus():
    """No GPU is needed for that. It shows what the interpreter does not ask: types, layouts, registers, assembly."""
    done = run("-W", "error", "tests/ops/compile_triton.py", "90", "80")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * 8  # scatter, gather, forward for six numbers of rows; two generations of GPUs
    assert all("bytes spilled: 0" in line for line in lines), done.stdout


MISSING = """if True:
    import builtins, logging, os
    original = builtins.__import__
    def without_triton(name, *arguments, **options):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return original(name, *arguments, **options)
    builtins.__import__ = without_triton
    logging.basicConfig(format="%(levelname)s %(message)s")
    import torch
    from hf_srigl import CondensedLinear
    from hf_srigl.ops import kernel_for
    from hf_srigl.ops.cuda import choose_cuda
    for _ in range(2):
        choose_cuda.announce("auto")
    print(choose_cuda.choose("auto", torch.device("cuda"), 1, 64, 64, 64, torch.bfloat16))
    layer = CondensedLinear(8, 4, budget=8)
    print(kernel_for(layer, 1).name)
    layer(torch.ones(2, 8)).sum().backward()
    os.environ["HF_SRIGL_KERNEL"] = "triton"
    for call in (lambda: kernel_for(layer, 1), lambda: layer(torch.ones(2, 8))):
        try:
            call()
        except RuntimeError as error:
            print(error)
"""


def test_without_triton():
    """Said once and with the way out; CPU layers do not care; asking for the kernels is an error."""
    done = run("-c", MISSING)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING condensed layers on the GPU run on the slow path, without Triton kernels:") == 1
    assert "pip install '.[gpu]'" in done.stderr
    cuda, cpu, first, second = done.stdout.splitlines()
    assert cuda.startswith("('reference', \"triton is not installed")
    assert cpu in ("cpu", "reference")
    assert first == second
    assert first.startswith("HF_SRIGL_KERNEL=triton asks for the Triton kernels, but triton is not installed")
