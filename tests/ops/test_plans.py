"""Native kernels inside layers: a changed topology is always seen, and nothing is kept for ever."""

import copy
import gc

import pytest
import torch
from rounding import assert_close_sum, assert_product, product_size
from torch import nn

from conftest import Toy, tiny_bert
from hf_srigl import CondensedLinear, SRigLConfig, sparsify
from hf_srigl.ops import choose
from hf_srigl.ops.cpu import library, plans
from hf_srigl.rule import topology

pytestmark = pytest.mark.skipif(not library.available(), reason=library.reason())


@pytest.fixture(autouse=True)
def _native(monkeypatch):
    monkeypatch.setenv(choose.VARIABLE, "cpu")


def random_mask(seed, n_out=33, n_in=65, fan_in=6):
    return topology.random_mask((n_out, n_in), fan_in, torch.Generator().manual_seed(seed))


def make(seed=1, dtype=torch.float32):
    mask = random_mask(seed)
    return CondensedLinear.from_dense(torch.randn(33, 65, dtype=dtype), mask, torch.randn(33, dtype=dtype))


def check(layer, x=None):
    """The layer computes what its dense matrix computes, forward and backward."""
    x = torch.randn(20, 65, dtype=layer.weight.dtype) if x is None else x
    x = x.clone().requires_grad_()
    layer.weight.grad = None
    y = layer(x)
    w = layer.to_dense().detach()
    assert_product(y, x, w, layer.bias, name="y")
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert_product(x.grad, upstream, w.t(), name="x.grad")
    assert_values_gradient(layer.weight.grad, upstream, x.detach(), layer)


def assert_values_gradient(found, upstream, x, layer):
    """The gradient of the values is that of the matrix, ``upstream.T @ x`` (N, K), at the slots."""
    expected, size = (
        topology.gather(matrix, layer.indices, layer.active)
        for matrix in (upstream.double().t() @ x.double(), product_size(upstream.t(), x.t()))
    )
    assert_close_sum(found, expected, terms=len(x), size=size, name="weight.grad")


def test_rewire_is_seen():
    layer = make()
    for seed in range(2, 6):
        check(layer)
        with torch.no_grad():
            layer.rewire(random_mask(seed))
            layer.weight.normal_()
    ablated = random_mask(9)
    ablated[:11] = False
    layer.rewire(ablated)
    check(layer)


def test_a_rewire_between_forward_and_backward_is_an_error():
    layer = make()
    y = layer(torch.randn(4, 65))
    layer.rewire(random_mask(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_loading_is_seen():
    layer, other = make(1), make(2)
    check(layer)
    layer.load_state_dict(other.state_dict())
    check(layer)
    layer.load_state_dict({k: v.clone() for k, v in make(3).state_dict().items()}, assign=True)
    check(layer)


def test_moving_and_copying():
    layer = make()
    check(layer)
    twin = copy.deepcopy(layer)
    twin.rewire(random_mask(2))
    check(twin)
    check(layer)
    check(layer.to(torch.bfloat16))
    check(layer.double().float())


def test_other_memory_under_the_same_tensor_is_seen():
    layer = make()
    check(layer)
    layer.indices.data = make(2).indices.clone()
    check(layer)


def test_forget():
    layer = make()
    check(layer)
    layer.indices.data.copy_(make(2).indices)  # a write that leaves no trace
    plans.forget(layer.indices)
    check(layer)


def test_from_pretrained(tmp_path):
    model = sparsify(tiny_bert(), SRigLConfig(sparsity=0.75)).eval()
    ids = torch.stack([Toy()[i]["input_ids"] for i in range(4)])
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, expected)
    again = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert torch.equal(again(ids).logits, model.to(torch.bfloat16)(ids).logits)


def test_autocast():
    layer = make()
    x = torch.randn(20, 65)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    weight, bias = layer.to_dense().bfloat16(), layer.bias.bfloat16()
    assert_product(y, x.bfloat16(), weight, bias)
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_compiled_layers_see_a_rewire():
    torch._dynamo.reset()
    stack = nn.Sequential(make(1), nn.Linear(33, 65), make(2))
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    x = torch.randn(20, 65)
    for seed in (3, 4):
        assert torch.equal(compiled(x), stack(x))
        compiled(x).sum().backward()
        stack[2].rewire(random_mask(seed))
    assert torch.equal(compiled(x), stack(x))


def test_inference_tensors_have_no_version():
    with torch.inference_mode():
        layer = make()
        x = torch.randn(20, 65)
        for seed in (2, 3):
            assert_product(layer(x), x, layer.to_dense(), layer.bias)
            layer.rewire(random_mask(seed))


def test_update_steps_collect_the_same():
    x = torch.randn(3, 20, 65)
    native = make(1)
    native.dense_grad.start()
    upstreams = []
    for part in x:
        y = native(part)
        y.register_hook(upstreams.append)
        y.square().sum().backward()
        native.dense_grad.commit(afresh=False)
        assert_product(upstreams[-1] / 2, part, native.to_dense(), native.bias)  # the gradient of y^2 is 2 y
    upstream, rows = torch.cat(upstreams), x.flatten(0, 1)
    assert_product(native.dense_grad.dense(), upstream.t(), rows.t())
    assert_values_gradient(native.weight.grad, upstream, rows, native)
    native.dense_grad.stop()
    native(x[0]).sum().backward()
    assert native.dense_grad.pending is None


def test_frozen_weights_collect_nothing():
    layer = make()
    layer.weight.requires_grad_(False)
    layer.dense_grad.start()
    layer(torch.randn(4, 65, requires_grad=True)).sum().backward()
    assert layer.dense_grad.pending is None


def test_plans_go_with_their_layers(monkeypatch):
    monkeypatch.setattr(plans, "_recent", {})
    before = set(plans._known)
    layers = [make(seed) for seed in range(1000, 1005)]  # topologies that no other test has
    for layer in layers:
        check(layer)
    assert len(set(plans._known) - before) == 5
    alive = len(plans._by_content)
    del layer, layers
    gc.collect()
    assert set(plans._known) <= before
    plans._recent.clear()
    assert len(plans._by_content) <= alive - 5


def test_what_is_kept_for_short_lived_tensors_is_bounded(monkeypatch):
    monkeypatch.setattr(plans, "_recent", {})
    monkeypatch.setattr(plans, "RECENT_BYTES", 20_000)
    for seed in range(100):
        check(make(seed))
    assert 1 <= len(plans._recent) < 50
    assert sum(plan.nbytes for plan in plans._recent.values()) <= 20_000


def test_a_collision_of_fingerprints_is_harmless(monkeypatch):
    class Same:
        def __getattr__(self, name):
            return (lambda *arguments: 7) if name == "srigl_fingerprint" else getattr(real, name)

    real = library.loaded()
    monkeypatch.setattr(library, "_library", Same())
    narrow, wide = random_mask(1, fan_in=3), random_mask(1, fan_in=6)
    weight = torch.randn(33, 65)
    for mask in (wide, narrow, wide):
        check(CondensedLinear.from_dense(weight, mask, torch.randn(33), budget=33 * 6))
    bad = make()
    with torch.no_grad():
        bad.indices[0] = 64
        bad.indices[1] = 99
    with pytest.raises(ValueError, match="do not describe a condensed layer"):
        bad(torch.randn(4, 65))
