"""Parity of the Triton kernels: run by test_triton.py in triton's interpreter (CPU), by test_gpu.py on a GPU."""

import pytest
import torch
from rounding import assert_close_training, assert_product, path_terms
from test_cpu import dense, gather, layer
from torch import nn

from hf_srigl import CondensedLinear, SRigL, SRigLConfig, sparsify
from hf_srigl.ops import choose, kernel_for
from hf_srigl.ops.cuda import choose_cuda
from hf_srigl.rule import topology

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = [0, 1, 3, 17, 32]
# (N, K, fan-in, ablated rows, extra unused slots)
LAYERS = [
    (1, 1, 1, 0, 0),
    (7, 5, 1, 3, 2),
    (5, 70, 70, 1, 0),  # fan-in = inputs
    (21, 37, 9, 20, 11),  # one active row
    (35, 65, 33, 5, 3),
    (4, 17, 3, 1, 30),  # the fan-in must be searched for
    (5, 20, 3, 5, 1),  # nothing active
    (17, 40, 0, 0, 4),  # nothing kept
]
TYPES = [
    (torch.float32, torch.int16),
    (torch.float32, torch.int32),
    (torch.bfloat16, torch.int16),
    (torch.float16, torch.int32),
]


@pytest.fixture
def kernels():
    return choose_cuda.kernels()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Every tensor the kernels are given to fill starts as NaN."""
    empty = torch.Tensor.new_empty

    def filled(*arguments, **options):
        tensor = empty(*arguments, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
    monkeypatch.delenv(choose.VARIABLE, raising=False)
    choose._on_cuda.cache_clear()


def on_device(tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


def assert_layer(y, x, weight, indices, active, bias):
    """Compared with float64, to within the rounding of float32 sums and of the result."""
    w = dense(weight.cpu(), indices.cpu(), active.cpu(), x.shape[-1])
    assert_product(y, x, w, bias, truncated=DEVICE == "cpu" and y.dtype == torch.bfloat16)


@pytest.mark.parametrize(("dtype", "index_dtype"), TYPES, ids=str)
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
def test_forward(kernels, sizes, dtype, index_dtype):
    weight, indices, active, bias = on_device(layer(*sizes, dtype, index_dtype))
    for i, rows in enumerate(ROWS):
        x = torch.randn(rows, sizes[1], device=DEVICE).to(dtype)
        offset = bias if i % 2 else None
        y = kernels.forward(x, weight, indices, active, offset)
        assert y.dtype == dtype
        assert y.shape == (rows, sizes[0])
        assert y.is_contiguous()
        assert_layer(y, x, weight, indices, active, offset)


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_every_tile_that_may_be_tuned(kernels, rows):
    weight, indices, active, bias = on_device(layer(9, 80, 39, 2, 1, torch.float32, torch.int16))
    x = torch.randn(rows, 80, device=DEVICE)
    tiles = kernels.tiles(rows)
    assert 5 <= len(tiles) <= 9
    tuned = kernels._fitting(kernels._tuned_forward.configs, {}, ROWS=rows)
    assert [(config.kwargs["NEURONS"], config.kwargs["VALUES"]) for config in tuned] == tiles
    for tile in tiles:
        y = kernels.forward(x, weight, indices, active, bias, tile)
        assert_layer(y, x, weight, indices, active, bias)


def test_neurons_are_counted_in_chunks(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "_CHUNK", 8)
    weight, indices, active, bias = on_device(layer(35, 20, 6, 9, 2, torch.float32, torch.int16))
    x = torch.randn(3, 20, device=DEVICE)
    assert_layer(kernels.forward(x, weight, indices, active, bias), x, weight, indices, active, bias)
    scattered = kernels.scatter(weight, indices, active, 20).double().cpu()
    assert torch.equal(scattered, dense(*(t.cpu() for t in (weight, indices, active)), 20))


@pytest.mark.parametrize(("dtype", "index_dtype"), TYPES, ids=str)
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
def test_scatter_and_gather(kernels, sizes, dtype, index_dtype):
    n_out, n_in = sizes[:2]
    weight, indices, active, _ = on_device(layer(*sizes, dtype, index_dtype))
    matrix = kernels.scatter(weight, indices, active, n_in)
    assert matrix.dtype == dtype
    assert torch.equal(matrix.double().cpu(), dense(weight.cpu(), indices.cpu(), active.cpu(), n_in))
    grad = torch.randn(n_out, n_in, device=DEVICE).to(dtype)
    values = kernels.gather(grad, indices, active)
    assert values.dtype == dtype
    assert torch.equal(values.double().cpu(), gather(grad.cpu().double(), indices.cpu(), active.cpu()))


def test_what_a_neuron_does_not_read_cannot_touch_it(kernels):
    weight, indices, active, bias = on_device(layer(9, 8, 4, 1, 3, torch.float32, torch.int16))
    x = torch.randn(3, 8, device=DEVICE)
    x[:, 0] = float("inf")  # the column that masked lanes point to
    reads = dense(weight.cpu(), indices.cpu(), active.cpu(), 8)[:, 0] != 0
    assert 0 < reads.sum() < 9
    for rows in (1, 3):
        finite = torch.isfinite(kernels.forward(x[:rows], weight, indices, active, bias)).all(0)
        assert torch.equal(finite.cpu(), ~reads)


def test_shapes_strides_and_too_many_rows(kernels):
    weight, indices, active, bias = on_device(layer(6, 12, 3, 0, 0, torch.float32, torch.int16))
    x = torch.randn(12, 4, device=DEVICE).t()
    assert_layer(kernels.forward(x, weight, indices, active, bias), x, weight, indices, active, bias)
    row = torch.randn(2, 24, device=DEVICE)[1, ::2]
    y = kernels.forward(row, weight, indices, active, bias)
    assert y.shape == (6,)
    assert_layer(y, row, weight, indices, active, bias)
    y = kernels.forward(x.reshape(2, 2, 12), weight, indices, active, bias)
    assert_layer(y.view(4, 6), x, weight, indices, active, bias)
    with pytest.raises(ValueError, match="expected at most 32 rows, got 33"):
        kernels.forward(torch.randn(33, 12, device=DEVICE), weight, indices, active, bias)


@pytest.mark.parametrize(("rows", "name"), [(3, "triton"), (40, "dense")])
@pytest.mark.parametrize("ablated", [0, 2])
def test_the_layer_and_its_gradients(kernels, monkeypatch, rows, name, ablated):
    called = []
    for function in ("forward", "scatter", "gather"):
        original = getattr(kernels, function)
        monkeypatch.setattr(kernels, function, lambda *a, _f=original, _n=function: called.append(_n) or _f(*a))
    weight = torch.randn(9, 24)
    mask = torch.zeros(9, 24, dtype=torch.bool)
    mask[ablated:, 3:10] = True
    condensed = CondensedLinear.from_dense(weight, mask, torch.randn(9)).to(DEVICE)
    x = torch.randn(rows, 24, device=DEVICE, requires_grad=True)
    monkeypatch.setenv(choose.VARIABLE, "triton")
    assert kernel_for(condensed, rows).name == name
    y = condensed(x)
    assert called == (["forward"] if name == "triton" else ["scatter"])
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert called[1:] == ["scatter", "gather"]
    w = condensed.to_dense().detach()
    assert_product(y, x, w, condensed.bias, name="y")
    assert_product(x.grad, upstream, w.t(), name="x.grad")
    matrix = upstream.t() @ x.detach()  # the very product whose values are gathered
    assert torch.equal(condensed.weight.grad, topology.gather(matrix, condensed.indices, condensed.active))
    assert_product(matrix, upstream.t(), x.t(), name="weight.grad")
    ones = torch.ones(1, rows, device=DEVICE)
    assert_product(condensed.bias.grad[None], ones, upstream.t(), name="bias.grad")


def test_training_moves_the_same_connections_as_the_reference(kernels, monkeypatch):
    def train(kernel):
        monkeypatch.setenv(choose.VARIABLE, kernel)
        torch.manual_seed(0)
        config = SRigLConfig(sparsity=0.75, update_every=2, gamma_sal=0.9, init="random", stop_updates_at=1.0)
        model = sparsify(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 6)), config).to(DEVICE)
        before = [module.indices.clone() for module in model if isinstance(module, CondensedLinear)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        srigl = SRigL(model, optimizer, total_steps=6)
        reports, largest = [], 0.0
        for step in range(4):
            optimizer.zero_grad()
            x = torch.randn(5, 20, generator=torch.Generator().manual_seed(step)).to(DEVICE)
            model(x).square().sum().backward()
            largest = max(largest, *(float(p.grad.abs().max()) for p in model.parameters()))
            optimizer.step()
            reports.append(srigl.step())
        return model, reports, before, largest

    (ours, reports, before, largest), (theirs, expected, _, _) = train("triton"), train("reference")
    assert reports == expected
    assert reports[-1].dropped > 0
    rate = 0.01 * largest / (1 - 0.9)
    for name, tensor in theirs.state_dict().items():
        assert_close_training(ours.state_dict()[name], tensor, steps=4, rate=rate, terms=path_terms(ours), name=name)
    assert any(not torch.equal(old, module.indices) for old, module in zip(before, (ours[0], ours[2])))
