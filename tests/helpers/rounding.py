"""How far apart two correct computations of the same numbers may be: from the dtype, the number of terms and their size.

A sum of n terms, each of which may be a product, comes out within about n u S of the exact one, whatever the order, the
vector width and the use of fused multiply-adds; u is the unit roundoff of the dtype that is summed in and S the sum of
the terms' absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, sections 3.1 and 4.2).
That is a worst case and the same on every machine. Real roundings go both ways and leave about sqrt(n) u S, so what one
sees is a few hundredths of the bound, and a term left out, which is about S / n, is far outside of it as long as
n^2 u is small: n below about 1,000 in float32, anything in float64.

Through several layers no bound follows from n, u and S alone, since layers may amplify an error. `path_terms` counts
the terms on the whole way, and `assert_close_path` allows for each the rounding of the largest number there is. Of this
bound the part between n and sqrt(n) is what layers may amplify by; a bound over a path is therefore a count of roundings
and no proof, and tests that use it show that a small fault exceeds it.
"""

import torch
from torch import nn

from hf_srigl import CondensedLinear
from hf_srigl.layers.unstructured import UnstructuredLinear

SECOND_ORDER = 2  # two more terms pay for a bias and for what is quadratic in u


def unit_roundoff(dtype):
    """The largest relative error of rounding one number to nearest."""
    return torch.finfo(dtype).eps / 2


def sum_error(terms, size, dtype):
    """Bound of the error of one sum of `terms` terms whose absolute values add up to `size` (a number or a tensor)."""
    return (terms + SECOND_ORDER) * unit_roundoff(dtype) * size


def allowed(actual, expected, *, terms, size, dtype=torch.float32, truncated=False):
    """Bound of ``|actual - expected|`` if both are right, of the shape of `expected` or a number.

    Each side is summed in `dtype`, or in its own dtype where that is finer, and then rounded to its own dtype where that
    is coarser: to nearest, or, if `truncated`, towards zero, which costs up to twice as much.
    """
    bound = 0.0
    for side in (actual, expected):
        finest = min(dtype, side.dtype, key=unit_roundoff)
        bound = bound + sum_error(terms, size, finest)
        if unit_roundoff(side.dtype) > unit_roundoff(dtype):
            bound = bound + (1 + truncated) * unit_roundoff(side.dtype) * expected.double().abs()
    return bound


def assert_close_sum(actual, expected, *, terms, size, dtype=torch.float32, truncated=False, name=""):
    """Both are the same sums up to rounding: `terms` terms, absolute values adding up to `size`; see `allowed`."""
    bound = allowed(actual, expected, terms=terms, size=size, dtype=dtype, truncated=truncated)
    assert_within(actual, expected, bound, name)


def assert_within(actual, expected, bound, name=""):
    """``|actual - expected| <= bound`` everywhere; NaN nowhere."""
    assert actual.shape == expected.shape, f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    error = (actual.detach().double() - expected.detach().double()).abs().cpu()
    bound = torch.as_tensor(bound, dtype=torch.float64).detach().cpu().expand(error.shape)
    wrong = ~(error <= bound)
    if wrong.any():
        worst = torch.where(wrong, error - bound, -1.0).nan_to_num(nan=torch.inf).argmax()
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} values are further apart than rounding explains; "
            f"the worst by {error.flatten()[worst]:.3g} where {bound.flatten()[worst]:.3g} is allowed"
        )


def product_size(a, b, offset=None):
    """The size of the terms of ``a @ b.T + offset`` (rows, N) in float64; `a` (rows, K), `b` (N, K), `offset` (N,)."""
    size = a.detach().double().abs() @ b.detach().double().abs().mT
    return size if offset is None else size + offset.detach().double().abs()


def assert_product(actual, a, b, offset=None, *, truncated=False, name=""):
    """`actual` is ``a @ b.T + offset`` (..., N), summed in float32 or finer; products with zeros of `b` round nothing."""
    a, b = a.detach().cpu(), b.detach().cpu()
    offset = None if offset is None else offset.detach().cpu()
    expected = a.double() @ b.double().mT
    expected = expected if offset is None else expected + offset.double()
    terms = int((b != 0).sum(-1).max()) if b.numel() else 0
    size = product_size(a, b, offset)
    assert_close_sum(actual.cpu(), expected, terms=terms, size=size, truncated=truncated, name=name)


def path_terms(model):
    """How many terms are added up from the inputs to the outputs and back: inputs and outputs of each weight matrix.

    Of a model with condensed layers these count as the matrices they stand for, so it has the terms of its dense twin.
    Norms, attention and activations between two matrices are not counted: they have no more terms than these.
    """
    total = 0
    for module in model.modules():
        weight = module._parameters.get("weight")
        if isinstance(module, CondensedLinear | UnstructuredLinear):
            total += module.in_features + module.out_features
        elif weight is not None and weight.ndim >= 2 and not isinstance(module, nn.Embedding):
            total += weight[0].numel() + weight.shape[0]  # linear, Conv1D, convolution, whatever its class
    return total


def assert_close_path(actual, expected, *, terms, size=None, name=""):
    """Two results of a whole model (see above); the numbers added up are as large as `size`, or as the largest result."""
    size = float(expected.detach().abs().max()) if size is None else size
    assert_close_sum(actual, expected, terms=terms, size=size, dtype=expected.dtype, name=name)


class GradientSizes:
    """The sizes of the sums that are the gradients of a model's linear layers, noted in a backward pass.

    ``weight.grad`` (N, K) is ``gy.T @ x`` and ``bias.grad`` (N,) the sum of gy over all rows. Where the terms cancel, as in
    the bias of keys, whose gradient is zero and comes out as rounding alone, the gradient says nothing about its terms.
    Queries and keys get their gy through a softmax, whose own sums cancel: to zero where a token sees but itself. These
    sums are as large as what the values get, so the largest size among the layers of one module counts for all of them.
    """

    def __init__(self, layers):
        self._sizes = {}
        for name, layer in layers.items():
            layer.register_forward_hook(lambda _, inputs, y, name=name: self._watch(name, inputs[0], y))

    def _watch(self, name, x, y):
        x = x.detach().abs().reshape(-1, x.shape[-1])
        y.register_hook(lambda gy: self._add(name, gy.abs().reshape(-1, gy.shape[-1]), x))

    def _add(self, name, gy, x):
        for kind, size in (("weight", (gy.t() @ x).max()), ("bias", gy.sum(0).max())):
            key = (name, kind)
            self._sizes[key] = self._sizes.get(key, 0.0) + float(size)

    def of(self, parameter):
        """The size of a parameter's gradient, by the parameter's name; None if it belongs to no layer watched."""
        layer, _, kind = parameter.rpartition(".")
        if (layer, kind) not in self._sizes:
            return None
        module = layer.rpartition(".")[0]
        return max(s for (name, k), s in self._sizes.items() if k == kind and name.rpartition(".")[0] == module)


def assert_close_training(actual, expected, *, steps, rate, terms, spread=1.0, name=""):
    """Two weights (or topologies, which must be equal) after the same `steps` optimizer steps.

    A step moves a weight by at most about `rate` and rounds it once when storing it. The gradient is a sum over `terms`
    terms of the way through the model. SGD: `rate` is the learning rate times the largest gradient, over 1 - momentum.
    AdamW divides by sqrt(v), the rounding of a gradient too: `rate` is the learning rate, and `spread` how many times
    smaller than the layer's largest gradient a gradient is that still decides where its weight goes. What a step's rounding
    does to later steps is paid for by the part of the bound between n and sqrt(n), as over a path. Compare in float64,
    where a large `spread` costs nothing: faults are as large as `rate`, and no update of the topology is decided by rounding.
    """
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), name
        return
    u = unit_roundoff(expected.dtype)
    bound = 2 * steps * u * (expected.detach().abs() + (terms + SECOND_ORDER) * spread * rate)
    assert_within(actual, expected, bound, name)
