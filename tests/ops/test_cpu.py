"""Parity of the native kernels with a float64 reference, over awkward sizes, types, threads and instruction sets."""

import os
import subprocess
import sys

import pytest
import torch
from rounding import assert_close_sum, assert_product, product_size

from hf_srigl.ops.cpu import calls as cpu
from hf_srigl.ops.cpu import library

pytestmark = pytest.mark.skipif(not library.available(), reason=library.reason())

ROWS = [0, 1, 2, 7, 8, 15, 16, 17, 63, 64, 257]
# (N, K, fan-in, ablated rows, extra unused slots)
LAYERS = [
    (1, 1, 1, 0, 0),
    (1, 5, 5, 0, 0),
    (7, 1, 1, 3, 2),
    (3, 17, 4, 0, 1),
    (33, 65, 1, 5, 0),
    (65, 33, 33, 2, 7),
    (40, 300, 30, 39, 11),  # one active row
    (129, 257, 26, 10, 3),
    (300, 700, 70, 0, 0),
    (70, 515, 513, 1, 0),
    (5, 20, 3, 5, 0),  # nothing active
    (257, 40, 0, 0, 4),  # nothing kept
]


def layer(n, k_in, fan_in, ablated, unused, dtype, index_dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    active = torch.ones(n, dtype=torch.bool)
    active[torch.randperm(n, generator=g)[:ablated]] = False
    rows = [torch.randperm(k_in, generator=g)[:fan_in].sort().values for _ in range(n - ablated)]
    used = torch.cat(rows) if rows else torch.empty(0, dtype=torch.long)
    indices = torch.cat([used, torch.full((unused,), -1)]).to(index_dtype)
    weight = torch.randn(len(indices), generator=g).to(dtype)
    bias = torch.randn(n, generator=g).to(dtype)
    return weight, indices, active, bias


def dense(weight, indices, active, k_in):
    """W (N, K) in float64, the long way round."""
    w = torch.zeros(len(active), k_in, dtype=torch.float64)
    neurons = active.nonzero().flatten().tolist()
    used = int((indices >= 0).sum())
    k = used // len(neurons) if neurons else 0
    for i, n in enumerate(neurons):
        w[n, indices[i * k : (i + 1) * k].long()] = weight[i * k : (i + 1) * k].double()
    return w


def gather(grad, indices, active):
    """The inverse: the (..., N, K) gradient at the slots, 0 in unused ones."""
    out = torch.zeros(*grad.shape[:-2], len(indices), dtype=torch.float64)
    neurons = active.nonzero().flatten().tolist()
    used = int((indices >= 0).sum())
    k = used // len(neurons) if neurons else 0
    for i, n in enumerate(neurons):
        out[..., i * k : (i + 1) * k] = grad[..., n, indices[i * k : (i + 1) * k].long()]
    return out


def assert_gradients(gx, gv, gy, x, w, indices, active):
    """Of x and of the values, against float64; `w` is the matrix (N, K)."""
    assert_product(gx, gy, w.T, name="gx")
    exact_and_size = torch.stack([gy.double().T @ x.double(), product_size(gy.T, x.T)])
    expected, size = gather(exact_and_size, indices, active)
    assert_close_sum(gv, expected, terms=len(x), size=size, name="gv")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Every tensor the kernels are given to fill starts as NaN."""
    empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))


@pytest.mark.parametrize("index_dtype", [torch.int16, torch.int32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
def test_parity(sizes, dtype, index_dtype):
    n, k_in = sizes[:2]
    weight, indices, active, bias = layer(*sizes, dtype, index_dtype)
    w = dense(weight, indices, active, k_in)
    assert torch.equal(cpu.scatter(weight, indices, active, k_in).double(), w)
    for rows in ROWS:
        x = torch.randn(rows, k_in).to(dtype)
        for b in (bias, None):
            assert_product(cpu.forward(x, weight, indices, active, b), x, w, b, name="y")
        gy = torch.randn(rows, n).to(dtype)
        gx, gv = cpu.backward(gy, x, weight, indices, active, True, True)
        assert_gradients(gx, gv, gy, x, w, indices, active)
        assert gx.dtype is dtype
        assert gv.dtype is dtype
        only_x, none = cpu.backward(gy, x, weight, indices, active, True, False)
        assert none.numel() == 0
        assert torch.equal(only_x, gx)
        none, only_v = cpu.backward(gy, x, weight, indices, active, False, True)
        assert none.numel() == 0
        assert torch.equal(only_v, gv)


def test_many_inputs():
    """More columns than int16 holds."""
    sizes = (20, 40000, 50, 2, 3)
    weight, indices, active, bias = layer(*sizes, torch.float32, torch.int32)
    assert indices.max() > 32767
    w = dense(weight, indices, active, 40000)
    for rows in (1, 9, 70):
        x, gy = torch.randn(rows, 40000), torch.randn(rows, 20)
        assert_product(cpu.forward(x, weight, indices, active, bias), x, w, bias)
        assert_gradients(*cpu.backward(gy, x, weight, indices, active, True, True), gy, x, w, indices, active)


def test_many_outputs():
    sizes = (33000, 30, 3, 5, 1)
    weight, indices, active, bias = layer(*sizes, torch.float32, torch.int16)
    x, gy = torch.randn(5, 30), torch.randn(5, 33000)
    w = dense(weight, indices, active, 30)
    assert_product(cpu.forward(x, weight, indices, active, bias), x, w, bias)
    assert_gradients(*cpu.backward(gy, x, weight, indices, active, True, True), gy, x, w, indices, active)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_strides(dtype):
    weight, indices, active, bias = layer(129, 257, 26, 10, 3, dtype, torch.int16)

    def run(x):
        return cpu.forward(x, weight, indices, active, bias)

    x = torch.randn(6, 7, 257).to(dtype)
    flat = run(x.reshape(42, 257))
    assert torch.equal(run(x).reshape(42, 129), flat)
    assert run(x).shape == (6, 7, 129)
    assert torch.equal(run(x[None]), run(x)[None])
    one = run(x[0, 0])
    assert one.shape == (129,)
    w = dense(weight, indices, active, 257)
    assert_product(one, x[0, 0], w, bias)  # one row is added up in another order
    wide = torch.full((42, 400), float("nan"), dtype=dtype)
    wide[:, 50:307] = x.reshape(42, 257)
    assert torch.equal(run(wide[:, 50:307]), flat)  # rows apart: read in place
    # Another order of the rows puts some into panels of another width, which add up in another order.
    assert_product(run(x.transpose(0, 1)), x.transpose(0, 1), w, bias)
    assert torch.equal(run(x.reshape(42, 257).T.contiguous().T), flat)  # features apart
    gy = torch.randn(6, 7, 129).to(dtype)
    gx, gv = cpu.backward(gy, x, weight, indices, active, True, True)
    assert gx.shape == x.shape
    other = gy.transpose(0, 1).contiguous().transpose(0, 1)
    gx2, gv2 = cpu.backward(other, x, weight, indices, active, True, True)
    assert torch.equal(gx, gx2)
    assert torch.equal(gv, gv2)
    expanded = torch.ones(1, dtype=dtype).expand(6, 7, 129)  # what sum().backward() sends
    gx3, gv3 = cpu.backward(expanded, x, weight, indices, active, True, True)
    gx4, gv4 = cpu.backward(expanded.contiguous(), x, weight, indices, active, True, True)
    assert torch.equal(gx3, gx4)
    assert torch.equal(gv3, gv4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 16, 40, 64, 150, 320])
def test_threads_and_repetition(rows, dtype):
    weight, indices, active, bias = layer(300, 700, 70, 11, 5, dtype, torch.int16)
    x, gy = torch.randn(rows, 700).to(dtype), torch.randn(rows, 300).to(dtype)
    results = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            runs = [
                (
                    cpu.forward(x, weight, indices, active, bias),
                    *cpu.backward(gy, x, weight, indices, active, True, True),
                )
                for _ in range(4)
            ]
            for run in runs[1:]:
                assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
            results[threads] = runs[0]
    finally:
        torch.set_num_threads(before)
    w = dense(weight, indices, active, 700)
    for y, gx, gv in results.values():
        assert_product(y, x, w, bias)
        assert_gradients(gx, gv, gy, x, w, indices, active)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan():
    weight, indices, active, _ = layer(4, 4, 1, 0, 0, torch.bfloat16, torch.int16)
    indices = torch.arange(4, dtype=torch.int16)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.bfloat16)
    bias = torch.tensor([2**-8, 3 * 2**-8, float("nan"), float("inf")], dtype=torch.bfloat16)
    for rows in (1, 3, 20, 70):
        x = torch.ones(rows, 4, dtype=torch.bfloat16)
        y = cpu.forward(x, weight, indices, active, bias)
        assert y[0, 0] == 1.0
        assert y[0, 1] == 1 + 2**-6
        assert y[-1, 2].isnan()
        assert y[-1, 3].isinf()


def test_topology_changes_are_seen():
    weight, indices, active, bias = layer(33, 65, 4, 0, 0, torch.float32, torch.int16)
    x = torch.randn(70, 65)
    cpu.forward(x, weight, indices, active, bias)
    _, other, _, _ = layer(33, 65, 4, 0, 0, torch.float32, torch.int16, seed=1)
    indices.copy_(other)
    w = dense(weight, indices, active, 65)
    first = cpu.forward(x, weight, indices, active, bias)
    assert_product(first, x, w, bias)
    assert torch.equal(cpu.forward(x, weight, indices.detach(), active, bias), first)  # an alias
    with torch.inference_mode():
        assert torch.equal(cpu.forward(x, weight, indices.clone(), active, bias), first)


@pytest.mark.parametrize(
    ("indices", "active"),
    [
        ([0, 5], [True, True]),  # out of range
        ([1, 0], [True, False]),  # descending
        ([1, 1], [True, False]),  # twice
        ([0, -2], [True, True]),
        ([-1, 0], [True, True]),  # unused, but not at the end
        ([0, 1, 2], [True, True]),  # not the same number each
        ([0, 1], [False, False]),  # slots without rows
    ],
)
@pytest.mark.parametrize("index_dtype", [torch.int16, torch.int32])
def test_bad_topologies_are_refused(indices, active, index_dtype):
    indices = torch.tensor(indices, dtype=index_dtype)
    with pytest.raises(ValueError, match="condensed"):
        cpu.forward(torch.ones(1, 5), torch.ones(len(indices)), indices, torch.tensor(active), None)


def test_mismatches_are_refused():
    weight, indices, active, bias = layer(33, 65, 4, 0, 0, torch.float32, torch.int16)
    with pytest.raises(TypeError):
        cpu.forward(torch.ones(2, 65, dtype=torch.bfloat16), weight, indices, active, bias)
    with pytest.raises(ValueError):
        cpu.forward(torch.ones(2, 65), weight[:-1], indices, active, bias)
    with pytest.raises(ValueError):
        cpu.backward(torch.ones(3, 33), torch.ones(2, 65), weight, indices, active, True, True)


@pytest.mark.parametrize("isa", ["avx2", "neon", "portable"])
def test_other_instruction_sets(isa):
    """The parity tests again, in a process told to use another instruction set."""
    if library.ISA_VARIABLE in os.environ:
        pytest.skip("already forced")
    if library.loaded().srigl_set_isa(isa.encode()):
        pytest.skip(f"no {isa} here")
    library.loaded().srigl_set_isa(b"")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "parity or shapes or threads",
        __file__,
    ]
    environment = os.environ | {library.ISA_VARIABLE: isa}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
