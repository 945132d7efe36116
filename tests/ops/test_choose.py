"""Which implementation runs: the estimate, the override, what is said about it."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from hf_srigl import CondensedLinear
from hf_srigl.ops import choose, kernel_for, reference
from hf_srigl.ops.cpu import calls as cpu
from hf_srigl.ops.cpu import library

F32, BF16 = torch.float32, torch.bfloat16
compiled = pytest.mark.skipif(not library.available(), reason=library.reason())


@pytest.fixture(autouse=True)
def _auto(monkeypatch):
    monkeypatch.delenv(choose.VARIABLE, raising=False)
    choose._announce.cache_clear()
    choose._decide.cache_clear()
    yield
    choose._announce.cache_clear()
    choose._decide.cache_clear()


def cheaper(*arguments):
    native, scatter, product = choose.costs(*arguments)
    return native <= scatter + product


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("rows", [0, 1, 8, 16, 17, 64, 256, 2048, 100_000])
def test_sparse_layers_run_natively(rows, dtype):
    assert cheaper(rows, 3072, 768, 3072 * 77, dtype, "avx512")


def test_dense_layers_do_not():
    full = 3072 * 768
    for dtype in (F32, BF16):
        assert not cheaper(2048, 3072, 768, full, dtype, "avx512")
        # Where scattering costs more than the product, the kernels are still the better of two losses.
        assert cheaper(1, 3072, 768, full, dtype, "avx512")


def test_everything_matters():
    assert cheaper(256, 768, 768, 768 * 400, F32, "avx512")
    assert not cheaper(256, 768, 768, 768 * 400, BF16, "avx512")
    assert not cheaper(256, 768, 768, 768 * 400, F32, "portable")
    assert not cheaper(256, 768, 768, 768 * 768, F32, "avx512")


def test_costs_grow_with_rows_between_the_table_and_beyond_it():
    costs = [choose.costs(rows, 768, 768, 768 * 77, F32, "avx512") for rows in (1, 2, 9, 16, 40, 100, 300, 2048, 5000)]
    assert costs == sorted(costs)


def test_gradients_copies_and_the_switch_decide(monkeypatch):
    """The same layer and rows; where scattering is what makes the dense way too dear, only a copy is faster."""
    monkeypatch.setattr(library, "available", lambda: True)
    monkeypatch.setattr(library, "isa", lambda: "avx512")
    choose._decide.cache_clear()
    layer = CondensedLinear(512, 512, budget=512 * 460).eval()
    assert kernel_for(layer, 1).name == "cpu"
    assert kernel_for(layer, 300).name == "dense"
    with torch.no_grad():
        assert kernel_for(layer, 1).name == kernel_for(layer, 300).name == "copy"
        assert kernel_for(layer, 1, BF16).name == "cpu"  # autocast: the values are of another type, and temporary
        assert kernel_for(layer.train(), 300).name == "dense"
        layer.eval()
        # Between: a copy is faster only if everything is in a cache, which is worth its memory above a density of 0.25.
        assert kernel_for(CondensedLinear(512, 512, budget=512 * 230).eval(), 1).name == "copy"
        assert kernel_for(CondensedLinear(512, 512, budget=512 * 125, dtype=BF16).eval(), 2).name == "cpu"
        assert kernel_for(CondensedLinear(512, 512, budget=512 * 135, dtype=BF16).eval(), 2).name == "copy"
        monkeypatch.setenv(choose.COPY_VARIABLE, "0")
        assert kernel_for(layer, 1).name == "cpu"
        assert kernel_for(layer, 300).name == "dense"


def spy(monkeypatch):
    """The names of the implementations called, in order."""
    calls = []
    for kind, name in (("cpu", "forward"), ("cpu", "backward"), ("cpu", "scatter"), ("reference", "forward")):
        module = {"cpu": cpu, "reference": reference}[kind]
        original = getattr(module, name)

        def noted(*arguments, _original=original, _name=f"{kind}.{name}"):
            calls.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(module, name, noted)
    return calls


@compiled
def test_what_runs_is_what_is_announced(monkeypatch):
    calls = spy(monkeypatch)
    sparse, full = CondensedLinear(512, 512, budget=512 * 51), CondensedLinear(512, 512, budget=512 * 512)
    for layer, name, expected in (
        (sparse, "cpu", ["cpu.forward"]),
        (full, "dense", ["reference.forward", "cpu.scatter"]),
    ):
        assert kernel_for(layer, 300).name == name
        calls.clear()
        layer(torch.randn(300, 512))
        assert calls == expected


@compiled
def test_the_override(monkeypatch):
    calls = spy(monkeypatch)
    layer = CondensedLinear(512, 512, budget=512 * 512)
    for value, expected in (("cpu", ["cpu.forward"]), ("reference", ["reference.forward"])):
        monkeypatch.setenv(choose.VARIABLE, value)
        assert kernel_for(layer, 300).name == value
        calls.clear()
        layer(torch.randn(300, 512))
        assert calls == expected
    for wrong in ("native", "", "CPU"):
        monkeypatch.setenv(choose.VARIABLE, wrong)
        for call in (lambda: kernel_for(layer, 1), lambda: layer(torch.randn(1, 512))):
            with pytest.raises(
                ValueError, match=f"HF_SRIGL_KERNEL must be one of auto, reference, cpu, triton, got '{wrong}'"
            ):
                call()


@compiled
def test_the_reason_names_what_decided(monkeypatch):
    layer = CondensedLinear(768, 768, budget=768 * 77)
    assert "256 rows of 768x768 float32 at density 0.100" in kernel_for(layer, 256).reason
    assert "bfloat16" in kernel_for(layer, 256, BF16).reason
    assert kernel_for(layer, 256, torch.float16) == (
        "reference",
        "the native kernels take float32 and bfloat16, not float16",
    )
    assert kernel_for(layer.to("meta"), 256).reason == "the native kernels run on the CPU, not on meta"


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_use_the_reference(dtype, monkeypatch):
    calls = spy(monkeypatch)
    layer = CondensedLinear(8, 4, budget=8, dtype=dtype)
    layer(torch.ones(2, 8, dtype=dtype)).sum().backward()
    assert calls == ["reference.forward"]


@compiled
def test_one_line_says_what_is_in_use(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "hf_srigl.ops")
    layer = CondensedLinear(8, 4, budget=8)
    for _ in range(3):
        layer(torch.ones(2, 8)).sum().backward()
    assert [record.message for record in caplog.records] == [
        f"condensed layers on the CPU run on native kernels ({library.isa()}, threads)"
    ]
    monkeypatch.setenv(choose.VARIABLE, "reference")
    layer(torch.ones(2, 8))
    assert "because HF_SRIGL_KERNEL=reference" in caplog.records[-1].message


def test_without_the_library(tmp_path):
    """A warning, once, that says why; asking for the kernels is an error."""
    script = """if True:
        import logging, os
        logging.basicConfig(format="%(levelname)s %(message)s")
        import torch
        from hf_srigl import CondensedLinear
        from hf_srigl.ops import kernel_for
        layer = CondensedLinear(8, 4, budget=8)
        for _ in range(3):
            layer(torch.ones(2, 8)).sum().backward()
        print(kernel_for(layer, 2).name)
        os.environ["HF_SRIGL_KERNEL"] = "cpu"
        try:
            layer(torch.ones(2, 8))
        except RuntimeError as error:
            print(error)
    """
    environment = os.environ | {library.PATH_VARIABLE: str(tmp_path / "nothing.so")}
    environment.pop(choose.VARIABLE, None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING condensed layers on the CPU run on the slow path, without native kernels:") == 1
    assert "nothing.so cannot be loaded" in done.stderr
    name, error = done.stdout.splitlines()
    assert name == "reference"
    assert error.startswith("HF_SRIGL_KERNEL=cpu asks for the native kernels, but ")
