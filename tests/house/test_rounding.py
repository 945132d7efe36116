"""The bounds that tests compare floats with: another order passes, a fault of ordinary size does not."""

import pytest
import torch
from rounding import (
    GradientSizes,
    assert_close_path,
    assert_close_sum,
    assert_close_training,
    assert_product,
    assert_within,
    path_terms,
    sum_error,
    unit_roundoff,
)
from torch import nn

UNITS = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", UNITS, ids=str)
def test_unit_roundoff_is_that_of_rounding_to_nearest(dtype):
    u = unit_roundoff(dtype)
    assert u == UNITS[dtype]
    values = torch.rand(10_000, dtype=torch.float64) + 1
    error = ((values.to(dtype).double() - values) / values).abs().max()
    assert error == 0 if dtype == torch.float64 else u / 2 < error <= u


def one_by_one(terms):
    """The sum from left to right, rounded after every addition."""
    total = torch.zeros((), dtype=terms.dtype)
    for term in terms:
        total = total + term
    return total


def orders(terms):
    yield one_by_one(terms)
    yield one_by_one(terms.flip(0))
    yield one_by_one(terms.sort().values)
    yield one_by_one(torch.stack([one_by_one(part) for part in terms.chunk(8)]))


@pytest.mark.parametrize("n", [1, 2, 30, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_another_order_passes_and_a_missing_term_fails(n, dtype):
    terms = torch.randn(n, dtype=torch.float64).to(dtype)
    exact, size = terms.double().sum(), terms.double().abs().sum()
    for total in orders(terms):
        assert_close_sum(total, exact, terms=n, size=size)
        assert_close_sum(total, terms.sum(), terms=n, size=size)
    term = terms.abs().median()
    for fault in (term, -term, 0.01 * term):
        with pytest.raises(AssertionError, match="further apart than rounding explains"):
            assert_close_sum(one_by_one(terms) + fault, exact, terms=n, size=size)


def test_the_worst_order_comes_close_to_the_bound():
    """Many terms that are each rounded away: the bound is not loose by more than a factor of two."""
    n, u = 1000, unit_roundoff(torch.float32)
    terms = torch.tensor([1.0] + [u] * n)  # 1 + u is a tie and rounds to 1
    error = terms.double().sum() - one_by_one(terms).double()
    bound = sum_error(n + 1, terms.double().sum(), torch.float32)
    assert 0.5 * bound < error <= bound


def test_terms_that_cancel_are_measured_by_their_size_not_by_their_sum():
    terms = torch.cat([torch.randn(50), -torch.randn(50)])
    terms = torch.cat([terms, -terms])[torch.randperm(200)]
    size = terms.double().abs().sum()
    assert abs(one_by_one(terms)) > 0  # rounding alone, infinitely many times the exact sum
    assert_close_sum(one_by_one(terms), torch.zeros((), dtype=torch.float64), terms=200, size=size)
    with pytest.raises(AssertionError):
        assert_close_sum(terms[1:].sum(), torch.zeros((), dtype=torch.float64), terms=200, size=size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products(dtype):
    """Zeros of the matrix are no terms; a result in half precision is rounded once more."""
    a, b, offset = torch.randn(5, 60).to(dtype), torch.randn(7, 60).to(dtype), torch.randn(7).to(dtype)
    b[:, 20:] = 0
    y = (a.float() @ b.float().t() + offset.float()).to(dtype)
    assert_product(y, a, b, offset)
    assert_product(y.view(5, 1, 7), a.view(5, 1, 60), b, offset)
    for column in (0, 19):
        left_out = b.clone()
        left_out[:, column] = 0
        with pytest.raises(AssertionError, match=r"y: \d+ of 35 values"):
            assert_product(y, a, left_out, offset, name="y")
    with pytest.raises(AssertionError):
        assert_product(y, a, b)
    if dtype == torch.bfloat16:
        cut = ((a.float() @ b.float().t() + offset.float()).view(torch.int32) & -(2**16)).view(torch.float32).to(dtype)
        assert_product(cut, a, b, offset, truncated=True)
        with pytest.raises(AssertionError):
            assert_product(cut, a, b, offset)


def test_what_is_no_number_or_of_another_shape_is_wrong():
    x = torch.zeros(3)
    assert_within(x, x, 0.0)
    for value in (torch.nan, torch.inf):
        with pytest.raises(AssertionError, match=r"x: 1 of 3 values"):
            assert_within(torch.tensor([0.0, value, 0.0]), x, 1e9, "x")
    with pytest.raises(AssertionError, match=r"expected shape \(3,\), got \(2,\)"):
        assert_within(x[:2], x, 1.0)


def small_model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 20)).to(dtype)


def test_over_a_path_the_float64_model_passes_and_a_changed_weight_fails():
    model, wide = small_model(), small_model().double()
    assert path_terms(model) == 30 + 40 + 40 + 20
    assert path_terms(nn.Sequential(nn.Embedding(9, 4), nn.Conv2d(3, 8, 2))) == 3 * 2 * 2 + 8
    x = torch.randn(6, 30)
    assert_close_path(model(x), wide(x.double()).float(), terms=path_terms(model))
    with torch.no_grad():
        model[0].weight[3, 5] *= 1.01
    with pytest.raises(AssertionError):
        assert_close_path(model(x), wide(x.double()).float(), terms=path_terms(model))


def test_sizes_of_gradients_are_those_of_their_terms():
    model, x = small_model(), torch.randn(6, 30)
    sizes = GradientSizes({"self.query": model[0], "self.value": model[0], "last": model[3]})
    assert sizes.of("last.bias") is None  # before any backward pass
    model(x).sum().backward()
    hidden = model[:3](x).detach()
    assert sizes.of("last.bias") == 6  # six rows of ones
    assert sizes.of("last.weight") == pytest.approx(float(hidden.abs().sum(0).max()))
    assert sizes.of("self.query.weight") == sizes.of("self.value.weight") > 0  # layers of one module
    assert sizes.of("norm.weight") is None
    model(x).sum().backward()  # what is used twice has twice the terms
    assert sizes.of("last.bias") == 12
    # softmax of the sum: what is the same for all classes has no gradient but rounding
    model.zero_grad()
    model(x).softmax(-1).sum().backward()
    assert 0 < model[3].bias.grad.abs().max() < 1e-6 * sizes.of("last.bias")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_training_in_another_order_passes_and_another_step_fails(name):
    def train(order, rate=0.02):
        model = small_model(torch.float64)
        optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](model.parameters(), lr=rate)
        x = torch.randn(10, 8, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for rows in x:
            optimizer.zero_grad()
            model(rows[order]).square().mean().backward()
            optimizer.step()
        return model.state_dict()

    same = {"steps": 10, "rate": 0.02, "terms": path_terms(small_model()), "spread": 1e4}
    expected, backwards = train(list(range(8))), train(list(range(7, -1, -1)))
    assert any(not torch.equal(backwards[key], tensor) for key, tensor in expected.items())
    for key, tensor in expected.items():
        assert_close_training(backwards[key], tensor, **same)
    other = train(list(range(8)), rate=0.02 * (1 + 1e-6))
    with pytest.raises(AssertionError):
        assert_close_training(other["0.weight"], expected["0.weight"], **same)
