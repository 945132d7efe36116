"""What the operator must be on a CUDA device, as far as that shows without one."""

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_srigl import CondensedLinear, ops
from hf_srigl.ops import choose, collect, kernel_for, reference
from hf_srigl.ops.cuda import calls as cuda
from hf_srigl.ops.cuda import choose_cuda
from hf_srigl.rule import topology

aten = torch.ops.aten
# inside an operator composite ones arrive undecomposed
WAITS = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.allclose}
WAITS |= {aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2, aten.bincount, aten.repeat_interleave}
CUDA = torch.device("cuda")


def make(n_out=6, n_in=10, fan_in=3, ablated=0, spare=0, dtype=torch.float32):
    mask = topology.random_mask((n_out, n_in), fan_in, torch.Generator().manual_seed(1))
    mask[:ablated] = False
    budget = int(mask.sum()) + ablated + spare
    return CondensedLinear.from_dense(torch.randn(n_out, n_in, dtype=dtype), mask, torch.randn(n_out), budget=budget)


@pytest.fixture(autouse=True)
def _reference(monkeypatch):
    monkeypatch.setenv(choose.VARIABLE, "reference")


def waits(function, args):
    """Whether an operation needs to know values on the host: a number, or how many elements a mask selects."""
    by_mask = function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    return by_mask or function.overloadpacket in WAITS


OPERATORS = {operator._qualname: operator for operator in (ops._operator, ops.condensed_linear_backward)}


class Watch(TorchDispatchMode):
    """Refuses every operation that waits for a GPU, inside our operators too; records the products' dtypes."""

    def __init__(self, *allowed):
        super().__init__()
        self.allowed = [tensor.data_ptr() for tensor in allowed]
        self.products = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "hf_srigl":
            with self:
                return OPERATORS[function._schema.name]._init_fn(*args, **kwargs)
        if waits(function, args) and args[0].data_ptr() not in self.allowed:
            raise RuntimeError(f"{function} waits for the GPU")
        if function.overloadpacket in (aten.mm, aten.addmm, aten.matmul):
            self.products.append({tensor.dtype for tensor in args})
        return function(*args, **kwargs)


@pytest.mark.parametrize("autocast", [False, True])
def test_an_ordinary_step_never_waits(autocast):
    layer = make(ablated=2, spare=3)
    x = torch.randn(4, 10, requires_grad=True)
    with Watch(layer.dense_grad.handle):  # the handle is a number in CPU memory
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
        y.sum().backward()
    assert layer.weight.grad.any()
    for wait in (lambda: x.sum().item(), lambda: bool(layer.active.any()), layer.active.nonzero, lambda: x[x > 0]):
        with Watch(), pytest.raises(RuntimeError, match="waits for the GPU"):
            wait()  # the watch can see what it looks for
    with Watch(), pytest.raises(RuntimeError, match="waits for the GPU"):
        layer.fan_in


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_shape_depends_on_data(dtype):
    with FakeTensorMode():
        x = torch.empty(2, 3, 10, dtype=dtype)
        weight, indices = torch.empty(20, dtype=dtype), torch.empty(20, dtype=torch.int16)
        active, bias = torch.empty(6, dtype=torch.bool), torch.empty(6, dtype=dtype)
        y = reference.forward(x, weight, indices, active, bias)
        grad_x, grad_weight = reference.backward(torch.empty_like(y), x, weight, indices, active, True, True, None)
        for tensor, shape in ((y, (2, 3, 6)), (grad_x, x.shape), (grad_weight, weight.shape)):
            assert tensor.shape == shape
            assert tensor.dtype == dtype
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            active.nonzero()
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            bool(active.any())


def test_under_autocast_products_run_in_the_compute_dtype_and_gradients_come_back_in_float32():
    layer = make(16, 24, 5)
    x = torch.randn(4, 24, requires_grad=True)
    with Watch(layer.dense_grad.handle) as watch:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.float().square().sum().backward()
    assert watch.products == [{torch.bfloat16}] * 3  # forward, gradient of x, gradient of the weights
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    with Watch(layer.dense_grad.handle) as watch:
        layer(x).sum().backward()
    assert watch.products == [{torch.float32}] * 3


def test_the_dense_matrix_is_scattered_again_for_backward_and_never_kept(monkeypatch):
    alive, most = [], []
    scatter = topology.scatter

    def noted(*arguments):
        dense = scatter(*arguments)
        alive.append(weakref.ref(dense))
        return dense

    layer = make()
    x = torch.randn(4, 10)
    with torch.no_grad():
        y = reference.forward(x, layer.weight, layer.indices, layer.active, None, noted)
    assert [matrix() for matrix in alive] == [None]
    gather = topology.gather

    def counted(dense, *arguments):
        most.append(sum(matrix() is not None for matrix in alive))
        return gather(dense, *arguments)

    with torch.no_grad():
        arguments = (torch.ones_like(y), x, layer.weight, layer.indices, layer.active, True, True, None, noted, counted)
        reference.backward(*arguments)
    assert len(alive) == 2  # once more
    assert most == [0]  # and gone before the dense gradient exists


def test_a_compiled_inference_graph_has_nothing_on_the_host():
    """A CPU input would keep a decoding step out of CUDA graphs."""
    seen = []

    def backend(graph, inputs):
        seen.append(inputs)
        return graph.forward

    layer, x = make(), torch.randn(2, 10)
    handle = layer.dense_grad.handle
    for grad in (False, True):
        torch._dynamo.reset()
        with torch.set_grad_enabled(grad):
            compiled = torch.compile(layer, fullgraph=True, backend=backend)
            assert torch.equal(compiled(x), layer(x))
    without, with_handle = (
        [tuple(tensor.shape) for tensor in inputs if tensor.dtype == handle.dtype] for inputs in seen
    )
    assert without == []
    assert with_handle == [()]


def test_only_the_backward_operator_stays_out_of_cuda_graphs():
    tag = torch.Tag.cudagraph_unsafe
    assert tag in torch.ops.hf_srigl.condensed_linear_backward.default.tags
    assert tag not in torch.ops.hf_srigl.condensed_linear.default.tags


def test_capturing_the_backward_pass_of_a_trained_layer_is_refused(monkeypatch):
    layer = make()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cuda.refuse_capture(layer.dense_grad.handle)
    cuda.refuse_capture(None)
    layer.dense_grad.watch(layer.weight, lambda gradient: None)
    assert collect.watched(layer.dense_grad.handle)
    with pytest.raises(RuntimeError, match="a CUDA graph is capturing the backward pass"):
        cuda.refuse_capture(layer.dense_grad.handle)
    layer.dense_grad.watch(layer.weight, None)
    cuda.refuse_capture(layer.dense_grad.handle)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(choose_cuda, "available", lambda: True)


def name(rows, density, mode="auto", dtype=torch.bfloat16):
    return choose_cuda.choose(mode, CUDA, rows, 1000, 1000, int(density * 1_000_000), dtype)[0]


def test_few_rows_of_sparse_layers_use_the_kernel(installed):
    for rows, density, expected in (
        (1, 0.05, "triton"),
        (1, 0.1, "triton"),
        (1, 0.2, "triton"),
        (1, 0.9, "dense"),
        (33, 0.05, "dense"),
        (4096, 0.1, "dense"),
        (8, 0.2, "triton"),
        (9, 0.2, "dense"),
    ):
        assert name(rows, density) == expected, (rows, density)
    limits = [rows for _, rows in choose_cuda.ROW_LIMITS]
    assert limits == sorted(limits, reverse=True)
    assert max(limits) <= choose_cuda.MAX_ROWS


def test_the_variable_and_the_dtype_decide(installed, monkeypatch):
    assert name(1, 0.1, "reference") == "reference"
    assert name(1, 0.1, dtype=torch.float64) == "reference"
    assert name(32, 0.9, "triton") == "triton"
    assert name(33, 0.9, "triton") == "dense"
    monkeypatch.setattr(choose_cuda, "available", lambda: False)
    monkeypatch.setattr(choose_cuda, "reason", lambda: "it is gone")
    assert choose_cuda.choose("auto", CUDA, 1, 8, 8, 8, torch.bfloat16) == ("reference", "it is gone")
    with pytest.raises(RuntimeError, match="HF_SRIGL_KERNEL=triton asks for the Triton kernels, but it is gone"):
        name(1, 0.1, "triton")


def test_kernel_for_a_layer_on_a_gpu(installed, monkeypatch):
    monkeypatch.delenv(choose.VARIABLE)
    layer = CondensedLinear(512, 512, budget=512 * 51, dtype=torch.bfloat16)
    with FakeTensorMode():
        layer.weight = torch.nn.Parameter(torch.empty(512 * 51, device=CUDA, dtype=torch.bfloat16))
    assert kernel_for(layer, 1) == ("triton", "1 rows at density 0.100: the kernel is used up to 16")
    assert kernel_for(layer, 17).name == "dense"
    assert kernel_for(layer, 17, torch.float64).name == "reference"


def test_asking_for_triton_without_a_gpu(monkeypatch):
    pytest.importorskip("triton")
    if torch.cuda.is_available() or choose_cuda.kernels().INTERPRETED:
        pytest.skip("there is a GPU, or triton interprets")
    monkeypatch.setenv(choose.VARIABLE, "triton")
    layer = make()
    for call in (lambda: kernel_for(layer, 1), lambda: layer(torch.randn(1, 10))):
        with pytest.raises(RuntimeError, match="but the layer is on cpu: move the model to a CUDA device"):
            call()
