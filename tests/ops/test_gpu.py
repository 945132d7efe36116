"""On a real GPU: parity and gradients, no waiting, memory, compilation, CUDA graphs, the Trainer. Skipped elsewhere."""

import importlib.util

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from triton_cases import (  # noqa: F401 (the interpreter's cases, here on the GPU)
    kernels,
    poisoned,
    test_every_tile_that_may_be_tuned,
    test_forward,
    test_neurons_are_counted_in_chunks,
    test_scatter_and_gather,
    test_shapes_strides_and_too_many_rows,
    test_the_layer_and_its_gradients,
    test_training_moves_the_same_connections_as_the_reference,
    test_what_a_neuron_does_not_read_cannot_touch_it,
)

from conftest import Toy, tiny_bert
from hf_srigl import CondensedLinear, SRigL, SRigLCallback, SRigLConfig, sparsify
from hf_srigl.ops import kernel_for
from hf_srigl.rule import topology

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),  # of triton and torch about themselves
]
CUDA = "cuda"
# (N, K, fan-in): shapes of the benchmarks, and odd ones
SHAPES = [(768, 3072, 307), (3072, 768, 77), (4096, 11008, 550), (1023, 513, 101)]
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def pair(n_out, n_in, fan_in, dtype, ablated=0):
    """A condensed layer on the GPU and the masked dense one that it must equal, in float64."""
    generator = torch.Generator().manual_seed(0)
    mask = topology.random_mask((n_out, n_in), fan_in, generator)
    mask[:ablated] = False
    weight = torch.randn(n_out, n_in, generator=generator) / fan_in**0.5
    bias = torch.randn(n_out, generator=generator)
    layer = CondensedLinear.from_dense(weight.to(CUDA, dtype), mask.to(CUDA), bias.to(CUDA, dtype))
    twin = nn.Linear(n_in, n_out, dtype=torch.float64, device=CUDA)
    with torch.no_grad():
        twin.weight.copy_(layer.to_dense())
        twin.bias.copy_(layer.bias)
    return layer, twin


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 32, 33, 300])
def test_values_and_gradients(shape, rows, dtype):
    layer, twin = pair(*shape, dtype, ablated=shape[0] // 9)
    x = torch.randn(rows, shape[1], device=CUDA, dtype=dtype, requires_grad=True)
    x64 = x.detach().double().requires_grad_()
    y, y64 = layer(x), twin(x64)
    upstream = torch.randn_like(y) / shape[0] ** 0.5
    y.backward(upstream)
    y64.backward(upstream.double())
    values = topology.gather(twin.weight.grad, layer.indices, layer.active)
    for ours, exact in (
        (y, y64),
        (x.grad, x64.grad),
        (layer.weight.grad, values),
        (layer.bias.grad, twin.bias.grad),
    ):
        scale = max(1.0, float(exact.abs().max()))
        assert float((ours.double() - exact).abs().max()) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_does_not_wait_for_the_gpu(rows, autocast):
    layer, _ = pair(256, 512, 51, torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters())
    x = torch.randn(rows, 512, device=CUDA, requires_grad=True)

    def step():
        with torch.autocast(CUDA, torch.bfloat16, enabled=autocast):
            loss = layer(x).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # compiles and tunes
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_dense_matrix_at_a_time():
    """Forward and backward of a deep stack need at their peak two transient matrices more than what stays."""
    size, depth = 2048, 12
    layers = nn.Sequential(*(CondensedLinear(size, size, size * size // 20, device=CUDA) for _ in range(depth)))
    layers = layers.to(torch.bfloat16)
    x = torch.randn(64, size, device=CUDA, dtype=torch.bfloat16)
    layers(x).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    layers(x).sum().backward()
    matrix = size * size * 2
    assert torch.cuda.max_memory_allocated() - before < 2.5 * matrix


def test_compiled_for_cuda_graphs_and_after_a_topology_update():
    layer, _ = pair(256, 256, 25, torch.bfloat16)
    x = torch.randn(1, 256, device=CUDA, dtype=torch.bfloat16)
    torch._dynamo.reset()
    with torch.inference_mode():
        compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
        for _ in range(4):
            torch.testing.assert_close(compiled(x).clone(), layer(x))
        other = topology.random_mask((256, 256), 25, torch.Generator().manual_seed(7)).to(CUDA)
    layer.rewire(other)
    with torch.inference_mode():
        layer.weight.normal_()
        torch.testing.assert_close(compiled(x).clone(), layer(x))


def test_a_captured_forward_sees_a_changed_topology():
    layer, _ = pair(300, 200, 20, torch.float32)
    x = torch.randn(2, 200, device=CUDA)
    with torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        mask = topology.random_mask((300, 200), 24, torch.Generator().manual_seed(7))
        mask[:50] = False  # a larger fan-in, some neurons ablated
        layer.rewire(mask.to(CUDA))
        layer.weight.normal_()
        graph.replay()
        torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_updates_its_topology(mode):
    torch._dynamo.reset()
    config = SRigLConfig(sparsity=0.8, update_every=2, init="random", stop_updates_at=1.0)
    model = sparsify(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)), config).to(CUDA)
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    srigl = SRigL(model, optimizer, total_steps=20)
    reports = []
    for _ in range(8):
        optimizer.zero_grad()
        compiled(torch.randn(16, 64, device=CUDA)).square().sum().backward()
        optimizer.step()
        reports.append(srigl.step())
    assert [report is not None for report in reports] == [False, True] * 4
    assert all(report.grown > 0 for report in reports[1::2])


def test_the_trainer_in_bf16(tmp_path):
    model = sparsify(tiny_bert(), SRigLConfig(sparsity=0.75, update_every=2, gamma_sal=None, stop_updates_at=1.0))
    arguments = TrainingArguments(str(tmp_path), max_steps=6, bf16=True, report_to="none", save_strategy="no")
    callback = SRigLCallback()
    Trainer(model, arguments, train_dataset=Toy(), callbacks=[callback]).train()
    assert len(callback.reports) == 3
    assert all(report.dropped > 0 for report in callback.reports)


def test_what_runs_is_what_is_said():
    layer, _ = pair(768, 3072, 150, torch.bfloat16)
    assert kernel_for(layer, 1).name == "triton"
    assert kernel_for(layer, 4096).name == "dense"
