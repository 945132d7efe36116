"""CondensedLinear and its operator against a dense layer under a mask."""

import copy
import io
import pickle

import pytest
import torch
from rounding import assert_close_sum, assert_product, product_size
from simulation import dense_twin
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_srigl import CondensedLinear
from hf_srigl.ops import condensed_linear
from hf_srigl.rule import topology

SHAPES = [(1, 1, 1), (4, 7, 1), (4, 7, 7), (33, 17, 5), (16, 64, 6)]


def make(n_out=6, n_in=10, fan_in=3, *, ablated=0, spare=0, bias=True, dtype=torch.float64):
    mask = topology.random_mask((n_out, n_in), fan_in, torch.Generator().manual_seed(1))
    mask[:ablated] = False
    weight, offset = torch.randn(n_out, n_in, dtype=dtype), torch.randn(n_out, dtype=dtype)
    return CondensedLinear.from_dense(weight, mask, offset if bias else None, budget=int(mask.sum()) + ablated + spare)


@pytest.mark.parametrize(("n_out", "n_in", "fan_in"), SHAPES)
@pytest.mark.parametrize("rows", [(0,), (1,), (3, 2), (2, 3, 2), ()])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_masked_dense_layer(n_out, n_in, fan_in, rows, bias):
    layer = make(n_out, n_in, fan_in, bias=bias, ablated=n_out // 3, spare=2 if fan_in < n_in else 0)
    twin, mask = dense_twin(layer)
    x = torch.randn(*rows, n_in, dtype=torch.float64, requires_grad=True)
    x_twin = x.detach().clone().requires_grad_()
    y, y_twin = layer(x), twin(x_twin)
    assert_product(y, x, twin.weight, twin.bias, name="y")
    upstream = torch.randn_like(y)
    y.backward(upstream)
    y_twin.backward(upstream)
    assert_product(x.grad, upstream, twin.weight.t(), name="x.grad")
    assert_product(x_twin.grad, upstream, twin.weight.t(), name="of the twin")
    gy, rows_of_x = upstream.reshape(-1, n_out), x.detach().reshape(-1, n_in)
    expected, size = (
        topology.gather(matrix * mask, layer.indices, layer.active)
        for matrix in (twin.weight.grad, product_size(gy.t(), rows_of_x.t()))
    )
    assert_close_sum(layer.weight.grad, expected, terms=len(gy), size=size, name="weight.grad")
    if bias:
        assert_close_sum(layer.bias.grad, twin.bias.grad, terms=len(gy), size=gy.abs().sum(0), name="bias.grad")


def test_gradcheck_and_opcheck():
    layer = make(5, 4, 2, ablated=1)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    none = torch.tensor(0)

    def call(x, weight, bias):
        return condensed_linear(x, weight, layer.indices, layer.active, bias, none)

    used = int((layer.indices >= 0).sum())
    weight = layer.weight.detach()[:used].clone().requires_grad_()
    layer.indices = layer.indices[:used]
    assert torch.autograd.gradcheck(call, (x, weight, layer.bias))
    arguments = (x, weight, layer.indices, layer.active, layer.bias, none)
    torch.library.opcheck(torch.ops.hf_srigl.condensed_linear.default, arguments)


def test_an_ablated_neuron_outputs_its_bias_or_zero():
    x = torch.randn(2, 10, dtype=torch.float64)
    layer = make(ablated=2)
    assert torch.equal(layer(x)[:, :2], layer.bias[:2].expand(2, 2))
    assert not make(ablated=2, bias=False)(x)[:, :2].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float32, "same"])
def test_autocast_and_half_precision_match_a_linear_layer(dtype, parameters):
    layer = make(16, 64, 6, dtype=torch.float32)
    twin, _ = dense_twin(layer)
    x = torch.randn(4, 64)
    if parameters == "same":
        layer, twin, x = layer.to(dtype), twin.to(dtype), x.to(dtype)
    with torch.autocast("cpu", dtype, enabled=parameters != "same"):
        y, y_twin = layer(x), twin(x)
    assert y.dtype == y_twin.dtype == dtype
    x, weight, bias = (tensor.detach().to(dtype) for tensor in (x, twin.weight, twin.bias))
    assert_product(y, x, weight, bias, name="condensed")
    assert_product(y_twin, x, weight, bias, name="dense")
    y.float().square().sum().backward()
    assert layer.weight.grad.dtype == layer.weight.dtype
    assert layer.indices.dtype == torch.int16


def test_non_contiguous_inputs():
    layer = make(6, 10, 3)
    x = torch.randn(10, 5, dtype=torch.float64).t()
    assert_product(layer(x), x, layer.to_dense(), layer.bias)
    wide = torch.randn(5, 20, dtype=torch.float64)[:, ::2]
    assert_product(layer(wide), wide, layer.to_dense(), layer.bias)


def test_the_output_may_be_written_in_place():
    layer = make()
    x = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y[:, 0] = 0.0  # what wav2vec2 does
    y.sum().backward()
    assert not x.grad[:, 0].any()
    assert x.grad[:, 1].any()


def test_what_is_saved_for_backward():
    layer = make(32, 48, 4, dtype=torch.float32)
    x = torch.randn(20, 48, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    shapes = sorted(tuple(t.shape) for t in saved)
    assert shapes == sorted([(20, 48), (layer.budget,), (layer.budget,), (32,), ()])  # the last is the handle


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    layer = make()
    x = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    expected = layer.weight.grad.clone()
    layer.weight.grad = None
    layer.dense_grad.start()
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(layer.weight.grad, expected)
    assert layer.dense_grad.pending is not None


def test_the_dense_gradient_is_collected_only_when_wanted_and_sums_over_uses():
    layer = make()
    twin, _ = dense_twin(layer)
    x = torch.randn(4, 10, dtype=torch.float64)
    layer(x).square().sum().backward()
    assert layer.dense_grad.pending is None
    layer.dense_grad.start()
    for part in (x[:2], x[2:]):  # used twice, and two backward passes
        (layer(part).square().sum() + layer(part).sum()).backward()
        (twin(part).square().sum() + twin(part).sum()).backward()
        layer.dense_grad.commit(afresh=False)
    gy = 2 * twin(x).detach() + 1
    assert_product(layer.dense_grad.dense(), gy.t(), x.t())
    assert_product(twin.weight.grad, gy.t(), x.t())
    layer.dense_grad.stop()
    assert not layer.dense_grad.seen


def test_half_precision_dense_gradients_are_summed_in_float32():
    layer = make(dtype=torch.bfloat16)
    layer.dense_grad.start()
    layer(torch.randn(4, 10, dtype=torch.bfloat16)).sum().backward()
    assert layer.dense_grad.pending.dtype == torch.float32


def test_frozen_inputs_and_frozen_weights():
    layer = make()
    layer(torch.randn(4, 10, dtype=torch.float64)).sum().backward()  # x needs no gradient
    assert layer.weight.grad is not None
    layer = make()
    layer.weight.requires_grad_(False)
    x = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert_product(x.grad, torch.ones(4, 6, dtype=torch.float64), layer.to_dense().t())


class Stack(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(make(10, 10, 3, dtype=torch.float32) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_compile_has_no_graph_break_and_collecting_does_not_recompile():
    torch._dynamo.reset()
    stack = Stack(3)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 10)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(compiled(x), stack(x))
        compiled(x).sum().backward()
        stack.layers[0].dense_grad.start()
        compiled(x).sum().backward()
    assert stack.layers[0].dense_grad.pending is not None
    assert stack.layers[1].dense_grad.pending is None


def test_compiling_many_layers_one_by_one_compiles_once():
    torch._dynamo.reset()
    layers = [make(10, 10, 3, dtype=torch.float32) for _ in range(12)]
    x = torch.randn(4, 10)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for layer in layers:
            layer.compile(fullgraph=True, backend="aot_eager")
            layer(x).sum().backward()
            assert layer.weight.grad is not None


def test_copies_are_independent():
    layer = make()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    x = torch.randn(4, 10, dtype=torch.float64)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        layer.dense_grad.start()
        assert not other.dense_grad.wanted
        assert torch.equal(other(x), layer(x))
        other(x).sum().backward()
        assert layer.dense_grad.pending is None  # the copy's gradient did not land in the original
        with torch.no_grad():
            other.weight.zero_()
        assert layer.weight.any()


def test_rewire_moves_what_is_kept_and_zeroes_what_is_grown():
    weight = torch.tensor([[1.0, 2.0, 0, 0], [0, 3.0, 4.0, 0]])
    layer = CondensedLinear.from_dense(weight, weight != 0)
    layer.weight.grad = torch.tensor([10.0, 20.0, 30.0, 40.0])
    moment = torch.tensor([0.1, 0.2, 0.3, 0.4])
    new = torch.tensor([[False, True, True, False], [False, False, True, True]])
    layer.rewire(new, [moment])
    assert layer.weight.tolist() == [2.0, 0.0, 4.0, 0.0]
    assert layer.weight.grad.tolist() == [20.0, 0.0, 40.0, 0.0]
    assert torch.equal(moment, torch.tensor([0.2, 0.0, 0.4, 0.0]))
    with pytest.raises(ValueError, match="expected at most budget = 4 values, got 6"):
        layer.rewire(torch.tensor([[True, True, True, False], [True, True, True, False]]))
    with pytest.raises(ValueError, match="leaves no neuron active"):
        layer.rewire(torch.zeros(2, 4, dtype=torch.bool))
    assert layer.weight.tolist() == [2.0, 0.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 4, 4), "in_features and out_features must be at least 1, got 0 and 4"),
        ((3, 4, 3), "between 4 (fan-in 1) and 12 (dense), got 3"),
        ((3, 4, 13), "between 4 (fan-in 1) and 12 (dense), got 13"),
    ],
)
def test_bad_sizes(arguments, says):
    with pytest.raises(ValueError, match=None) as error:
        CondensedLinear(*arguments)
    assert says in str(error.value)


def test_bad_dense_input():
    weight = torch.randn(3, 4)
    everything = torch.ones(3, 4, dtype=torch.bool)
    for arguments, says in (
        ((weight[0], everything), "weight must be an"),
        ((weight, everything[:2]), "mask must be bool of the weight's shape"),
        ((weight, everything.float()), "mask must be bool"),
        ((weight, ~everything), "leaves no weight"),
        ((weight, everything, torch.randn(4)), "bias must be of shape"),
    ):
        with pytest.raises(ValueError, match=says):
            CondensedLinear.from_dense(*arguments)
    with pytest.raises(ValueError, match=r"expected inputs of size \(..., 4\), got \(2, 5\)"):
        CondensedLinear.from_dense(weight, everything)(torch.randn(2, 5))
