"""Dense copies of layers too dense to gain: when they are kept, when they go, and that they are never wrong or saved."""

import copy
import gc
import pickle

import pytest
import torch
from rounding import assert_product
from torch import nn

from hf_srigl import CondensedLinear, sparsity_report
from hf_srigl.ops import choose, kernel_for
from hf_srigl.ops.cpu import calls as cpu
from hf_srigl.ops.cpu import copies, library
from hf_srigl.rule import topology
from hf_srigl.training.memory import live_bytes

pytestmark = pytest.mark.skipif(not library.available(), reason=library.reason())
ROWS, N_OUT, N_IN = 300, 64, 96


def random_mask(seed, fan_in=90):
    return topology.random_mask((N_OUT, N_IN), fan_in, torch.Generator().manual_seed(seed))


def make(seed=1, fan_in=90):
    return CondensedLinear.from_dense(torch.randn(N_OUT, N_IN), random_mask(seed, fan_in), torch.randn(N_OUT)).eval()


@pytest.fixture(autouse=True)
def _auto(monkeypatch):
    monkeypatch.delenv(choose.VARIABLE, raising=False)
    monkeypatch.delenv(choose.COPY_VARIABLE, raising=False)


@torch.no_grad()
def check(layer, kept=True):
    """The layer computes what its dense matrix computes, and afterwards there is a copy, or none."""
    x = torch.randn(ROWS, N_IN, dtype=layer.weight.dtype)
    if kept:
        assert torch.equal(layer(x), nn.functional.linear(x, layer.to_dense(), layer.bias))
    else:
        assert_product(layer(x), x, layer.to_dense(), layer.bias)
    assert (copies.kept_copy(layer.weight) is not None) == kept


def test_a_dense_layer_keeps_a_copy_in_inference_and_scatters_once(monkeypatch):
    scattered = []
    scatter = cpu.scatter
    monkeypatch.setattr(cpu, "scatter", lambda *a: scattered.append(1) or scatter(*a))
    layer = make()
    with torch.no_grad():
        assert kernel_for(layer, ROWS).name == "copy"
        assert "kept dense copy" in kernel_for(layer, ROWS).reason
    for _ in range(3):
        check(layer)
    assert len(scattered) == 1
    assert kernel_for(layer, ROWS).name == "dense"  # with gradients


def test_the_switch(monkeypatch):
    layer = make()
    monkeypatch.setenv(choose.COPY_VARIABLE, "0")
    check(layer, kept=False)
    with torch.no_grad():
        assert kernel_for(layer, ROWS).name == "dense"
        monkeypatch.setenv(choose.COPY_VARIABLE, "yes")
        with pytest.raises(ValueError, match="HF_SRIGL_DENSE_COPY must be 0 or 1, got 'yes'"):
            layer(torch.randn(ROWS, N_IN))
    monkeypatch.setenv(choose.COPY_VARIABLE, "1")
    check(layer)


def test_who_keeps_none():
    check(make(fan_in=9), kept=False)  # sparse enough for the kernels
    check(make().train(), kept=False)
    layer = make()
    layer(torch.randn(ROWS, N_IN))  # with gradients
    assert copies.kept_copy(layer.weight) is None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(ROWS, N_IN))
    assert copies.kept_copy(layer.weight) is None
    with torch.inference_mode():
        born_there = make()
        born_there(torch.randn(ROWS, N_IN))
    assert copies.kept_copy(born_there.weight) is None


def test_changes_are_seen():
    layer = make()
    check(layer)
    with torch.no_grad():
        layer.weight.mul_(2)
    check(layer)
    layer.rewire(random_mask(2))
    check(layer)
    layer.load_state_dict(make(3).state_dict())
    check(layer)
    layer.weight.data.normal_()  # leaves no version behind
    check(layer)
    layer.weight.data = torch.randn_like(layer.weight)
    check(layer)
    check(layer.to(torch.bfloat16))
    ablated = random_mask(4)
    ablated[:9] = False
    layer.rewire(ablated)
    check(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(ROWS, N_IN).bfloat16()).sum().backward()
    optimizer.step()
    check(layer)


@pytest.mark.parametrize("begin", [lambda layer: layer.train(), lambda layer: layer(torch.randn(ROWS, N_IN))])
def test_training_drops_the_copy(begin):
    layer = make()
    check(layer)
    begin(layer)
    assert copies.kept_copy(layer.weight) is None


def test_a_copy_is_counted_and_goes_with_its_layer():
    model = nn.Sequential(make())
    optimizer = torch.optim.SGD(model.parameters())
    before, size = live_bytes(model, optimizer), N_OUT * N_IN * 4
    assert sparsity_report(model).copy_bytes == 0
    check(model[0])
    report = sparsity_report(model)
    assert report.copy_bytes == size
    assert f"{size:,} bytes of dense copies" in str(report)
    assert live_bytes(model, optimizer) == before + size
    key = id(model[0].weight)
    assert key in copies._copies
    del model, optimizer
    gc.collect()
    assert key not in copies._copies


def test_a_copy_is_never_saved_or_copied():
    layer = make()
    names, size = set(layer.state_dict()), len(pickle.dumps(layer))
    check(layer)
    assert set(layer.state_dict()) == names
    assert abs(len(pickle.dumps(layer)) - size) < 100
    twin = copy.deepcopy(layer)
    assert copies.kept_copy(twin.weight) is None
    with torch.no_grad():
        twin.weight.zero_()
    check(twin)
    check(layer)


def test_outputs_are_fresh():
    """Some models write into a linear layer's output."""
    layer = make()
    x = torch.randn(2, ROWS, N_IN)
    with torch.no_grad():
        first = layer(x)
        expected = first.clone()
        first.zero_()
        assert torch.equal(layer(x), expected)
