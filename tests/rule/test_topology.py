"""The update rule and the condensed form: tables by hand, properties over awkward shapes, an independent oracle."""

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_srigl.rule import topology
from hf_srigl.rule.selection import SAMPLE_STRIDE
from hf_srigl.rule.topology import update_mask


def table(text):
    """'X..' is an active position, '.' an inactive one; rows separated by spaces."""
    return torch.tensor([[c == "X" for c in row] for row in text.split()])


# --- tables by hand --------------------------------------------------------------------------------------------------


def test_drop_the_smallest_weights_and_grow_the_largest_gradients_within_each_row():
    weight = torch.tensor([[5.0, 1.0, 0, 0], [4.0, 3.0, 0, 0]])
    grad = torch.tensor([[0.0, 0, 2.0, 1.0], [0.0, 0, 9.0, 8.0]])
    # n_drop = floor(0.5 * 4) = 2: weights 1.0 and 3.0 go; each row grows one back, its largest gradient
    new = update_mask(weight, table("XX.. XX.."), grad, budget=4, drop_fraction=0.5)
    assert torch.equal(new, table("X.X. X.X."))


def test_dropping_is_over_the_whole_layer_not_row_by_row():
    weight = torch.tensor([[0.1, 0.2, 0, 0], [4.0, 3.0, 0, 0]])
    grad = torch.tensor([[0.0, 0, 2.0, 1.0], [0.0, 0, 9.0, 8.0]])
    new = update_mask(weight, table("XX.. XX.."), grad, budget=4, drop_fraction=0.5)
    assert torch.equal(new, table("..XX XX.."))  # the first row loses both, the second none


def test_a_just_dropped_weight_may_return():
    weight = torch.tensor([[5.0, 1.0, 0, 0]])
    grad = torch.tensor([[0.0, 7.0, 2.0, 1.0]])
    new = update_mask(weight, table("XX.."), grad, budget=2, drop_fraction=0.5)
    assert torch.equal(new, table("XX.."))


def test_ablation_gives_the_budget_of_a_row_without_salient_weights_to_the_others():
    weight = torch.tensor([[0.1, 0.2, 0, 0], [4.0, 3.0, 0, 0], [5.0, 6.0, 0, 0]])
    grad = torch.tensor([[0.0, 0, 0, 0], [0.0, 0, 9.0, 8.0], [0, 0, 7.0, 9.5]])
    # n_drop = floor(0.34 * 6) = 2: row 0 loses both weights and has no candidate; the candidates are 9.5 and 9.0
    new = update_mask(weight, table("XX.. XX.. XX.."), grad, budget=6, drop_fraction=0.34, min_salient=1)
    assert torch.equal(new, table(".... XXX. XX.X"))  # fan-in 6 // 2 = 3
    unablated = update_mask(weight, table("XX.. XX.. XX.."), grad, budget=6, drop_fraction=0.34)
    assert torch.equal(unablated, table("XX.. XX.. XX.."))


def test_salient_means_worth_having():
    # a published port ablates rows with *many* salient weights; here that row must stay
    weight = torch.tensor([[9.0, 9.0, 0, 0], [0.1, 0.1, 0, 0]])
    grad = torch.zeros(2, 4)
    grad[0, 2:] = 1.0
    new = update_mask(weight, table("XX.. XX.."), grad, budget=4, drop_fraction=0.5, min_salient=1)
    assert torch.equal(new, table("XXXX ...."))


def test_an_ablated_neuron_may_return():
    weight = torch.tensor([[0.0, 0, 0, 0], [4.0, 3.0, 2.0, 1.0]])
    grad = torch.tensor([[0.0, 5.0, 6.0, 0], [0.0, 0, 0, 0]])
    new = update_mask(weight, table(".... XXXX"), grad, budget=4, drop_fraction=0.5, min_salient=2)
    assert torch.equal(new, table(".XX. XX.."))


def test_a_row_is_trimmed_by_magnitude_not_by_index():
    # row 0 returns, so the fan-in falls from 4 to 2, and row 1 must lose its smallest weights, which come first
    weight = torch.tensor([[0.0, 0, 0, 0], [1.0, 2.0, 3.0, 4.0]])
    grad = torch.tensor([[9.0, 8.0, 0, 0], [0.0, 0, 0, 0]])
    new = update_mask(weight, table(".... XXXX"), grad, budget=4, drop_fraction=0.25, min_salient=1)
    assert torch.equal(new, table("XX.. ..XX"))


def test_the_kept_set_after_an_ablation_holds_no_zero_weight_positions():
    # the freed slots must be filled by gradient, not by "keeping" inactive positions of weight zero
    weight = torch.tensor([[0.1, 0, 0, 0], [4.0, 0, 0, 0]])
    grad = torch.tensor([[0.0, 0, 0, 0], [0.0, 1.0, 2.0, 9.0]])
    new = update_mask(weight, table("X... X..."), grad, budget=2, drop_fraction=0.5, min_salient=1)
    assert torch.equal(new, table(".... X..X"))


def test_activity_is_told_by_the_mask_not_by_a_nonzero_weight():
    # column 3 was grown at the last update and is still exactly zero: it is active, smallest, and dropped first
    weight = torch.tensor([[2.0, 1.0, 0, 0.0]])
    grad = torch.tensor([[0.0, 0, 5.0, 1.0]])
    new = update_mask(weight, table("XX.X"), grad, budget=3, drop_fraction=0.34)
    assert torch.equal(new, table("XXX."))


def test_the_absolute_value_is_taken_of_signed_tensors():
    weight = torch.tensor([[-5.0, 1.0, 0, 0]])
    grad = torch.tensor([[0.0, 0, 1.0, -2.0]])
    assert torch.equal(update_mask(weight, table("XX.."), grad, budget=2, drop_fraction=0.5), table("X..X"))


def test_counts_are_floors_of_exact_products():
    # 100 * (1 - 0.9) is 9.999999999999998 in floats; ten weights are dropped, not nine
    weight = torch.arange(1.0, 101.0).view(1, 100)
    weight = torch.cat([weight, torch.zeros(1, 100)], dim=1)
    grad = torch.cat([torch.zeros(1, 100), torch.ones(1, 100)], dim=1)
    new = update_mask(weight, weight != 0, grad, budget=100, drop_fraction=1 - 0.9)
    assert int(new[0, 100:].sum()) == 10


def test_ties_go_to_the_lower_flat_index():
    ones = torch.ones(3, 4)
    new = update_mask(ones, table("..XX ..XX ..XX"), ones, budget=6, drop_fraction=0.5)
    # kept: the first three of the six equal weights; then each row grows its lowest free columns
    assert torch.equal(new, table("..XX X.X. XX.."))


def test_at_least_enough_rows_stay_to_hold_the_budget():
    weight = torch.tensor([[4.0, 3.0, 0], [2.0, 1.0, 0], [0.5, 0.4, 0]])
    grad = torch.zeros(3, 3)
    # nobody reaches min_salient = 3, yet ceil(6 / 3) = 2 rows are needed: those with most salient weights
    new = update_mask(weight, table("XX. XX. XX."), grad, budget=6, drop_fraction=0.0, min_salient=3)
    assert torch.equal(new, table("XXX XXX ..."))


def test_all_but_one_neuron_ablated():
    weight = torch.zeros(5, 8)
    weight[:, 0] = torch.tensor([0.1, 0.2, 9.0, 0.3, 0.4])
    grad = torch.zeros(5, 8)
    grad[2] = torch.arange(8.0)
    new = update_mask(weight, weight != 0, grad, budget=5, drop_fraction=0.8, min_salient=2)
    assert new.sum(1).tolist() == [0, 0, 5, 0, 0]
    assert new[2].nonzero().squeeze(1).tolist() == [0, 4, 5, 6, 7]


def test_inputs_are_untouched():
    weight, grad = torch.randn(6, 9), torch.randn(6, 9)
    mask = topology.magnitude_mask(weight, 3)
    before = weight.clone(), mask.clone(), grad.clone()
    update_mask(weight, mask, grad, budget=18, drop_fraction=0.5, min_salient=2)
    for tensor, copy in zip((weight, mask, grad), before, strict=True):
        assert torch.equal(tensor, copy)


# --- the oracle ------------------------------------------------------------------------------------------------------


def random_case(seed):
    """A layer as training leaves it: constant fan-in, ablated rows, unused slots, ties, zero weights."""
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=g))

    n_out, n_in = draw(1, 12), draw(1, 14)
    k0 = draw(1, n_in)
    budget = n_out * k0
    n_active = draw(-(-budget // n_in), n_out)
    rows = torch.randperm(n_out, generator=g)[:n_active]
    fan_in = min(n_in, budget // n_active)
    mask = torch.zeros(n_out, n_in, dtype=torch.bool)
    for row in rows:
        mask[row, torch.randperm(n_in, generator=g)[:fan_in]] = True
    dtype = [torch.float64, torch.float32, torch.bfloat16, torch.float16][draw(0, 3)]
    weight = torch.randn(n_out, n_in, generator=g, dtype=torch.float64) * mask
    grad = torch.randn(n_out, n_in, generator=g, dtype=torch.float64)
    if draw(0, 2) == 0:  # many ties
        weight, grad = (weight * 2).round(), (grad * 2).round()
    weight, grad = weight.to(dtype), grad.to(dtype)
    p = [0.0, 0.1, 0.29, 0.3, 0.5, 1 - 0.9, 1.0][draw(0, 6)]
    min_salient = [None, 1, max(1, k0 // 3), k0, k0 + 2][draw(0, 4)]
    return weight, mask, grad, {"budget": budget, "drop_fraction": p, "min_salient": min_salient}


@pytest.mark.parametrize("block", range(8))
def test_update_mask_agrees_with_the_oracle(block):
    changed = ablated = 0
    for seed in range(block * 100, block * 100 + 100):
        weight, mask, grad, options = random_case(seed)
        expected = oracle.update_mask(weight.double().tolist(), mask.tolist(), grad.double().tolist(), **options)
        new = update_mask(weight, mask, grad, **options)
        assert new.tolist() == expected, f"seed {seed}, shape {tuple(mask.shape)}, {options}"
        changed += not torch.equal(new, mask)
        ablated += bool((new.sum(1) == 0).any())
    assert changed > 50  # the cases decide something
    assert ablated > 5


@pytest.mark.parametrize(("n_out", "n_in", "fan_in"), [(300, 64, 7), (64, 300, 90), (257, 131, 13)])
def test_large_layers_take_the_sampled_path_and_agree_with_the_oracle(n_out, n_in, fan_in):
    for min_salient in (None, fan_in - 1):
        weight, grad = torch.randn(n_out, n_in), torch.randn(n_out, n_in)
        mask = topology.magnitude_mask(torch.rand(n_out, n_in), fan_in)
        options = {"budget": n_out * fan_in, "drop_fraction": 0.3, "min_salient": min_salient}
        new = update_mask(weight, mask, grad, **options)
        assert new.tolist() == oracle.update_mask(weight.tolist(), mask.tolist(), grad.tolist(), **options)


def test_a_sample_that_misleads_changes_nothing():
    # all large scores sit between the sampled positions, so the first guess at the threshold is far too low
    n_out, n_in = 40, 370
    grad = torch.linspace(0.0, 1.0, n_out * n_in)
    grad[::SAMPLE_STRIDE] = 0.0
    weight, grad = torch.randn(n_out, n_in), grad.view(n_out, n_in)
    mask = topology.magnitude_mask(torch.rand(n_out, n_in), 30)
    options = {"budget": n_out * 30, "drop_fraction": 0.4, "min_salient": 20}
    expected = oracle.update_mask(weight.tolist(), mask.tolist(), grad.tolist(), **options)
    assert update_mask(weight, mask, grad, **options).tolist() == expected
    flipped = 1.0 - grad  # now the sample holds only the largest: far too few at or above the guess
    expected = oracle.update_mask(weight.tolist(), mask.tolist(), flipped.tolist(), **options)
    assert update_mask(weight, mask, flipped, **options).tolist() == expected


def test_every_option_changes_the_outcome():
    weight, mask, grad = torch.randn(8, 10), topology.magnitude_mask(torch.rand(8, 10), 4), torch.randn(8, 10)
    base = {"budget": 32, "drop_fraction": 0.3, "min_salient": 4}
    reference = update_mask(weight, mask, grad, **base)
    for change in ({"budget": 24}, {"drop_fraction": 0.6}, {"min_salient": None}, {"min_salient": 6}):
        assert not torch.equal(update_mask(weight, mask, grad, **base | change), reference), change


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_invariants_over_awkward_shapes(data):
    n_out, n_in = data.draw(st.integers(1, 17)), data.draw(st.integers(1, 17))
    k0 = data.draw(st.integers(1, n_in))
    mask = topology.random_mask((n_out, n_in), k0, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    budget = n_out * k0
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        weight, grad = torch.randn(2, n_out, n_in, generator=generator)
        min_salient = data.draw(st.none() | st.integers(1, n_in + 1))
        p = data.draw(st.floats(0, 1))
        mask = update_mask(weight * mask, mask, grad, budget=budget, drop_fraction=p, min_salient=min_salient)
        per_row = mask.sum(1)
        n_active = int((per_row > 0).sum())
        assert n_active >= 1
        assert set(per_row.tolist()) <= {0, min(n_in, budget // n_active)}
        assert int(mask.sum()) <= budget
        if min_salient is None:
            assert n_active == n_out
        indices, active = topology.to_condensed(mask, budget)
        assert topology.find_problem(indices, active, n_in) is None
        assert torch.equal(topology.to_mask(indices, active, n_in), mask)


# --- the condensed form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.bool])
@pytest.mark.parametrize(("n_out", "n_in", "fan_in"), [(1, 1, 1), (5, 7, 1), (5, 7, 7), (64, 3, 2), (3, 64, 63)])
def test_scatter_and_gather_are_inverse(n_out, n_in, fan_in, dtype):
    mask = topology.random_mask((n_out, n_in), fan_in, torch.Generator().manual_seed(0))
    if n_out > 2:
        mask[1] = False  # an ablated row
    budget = int(mask.sum()) + 3  # and unused slots
    indices, active = topology.to_condensed(mask, budget)
    values = torch.randn(budget).to(dtype)
    values[int(mask.sum()) :] = 0
    dense = topology.scatter(values, indices, active, n_in)
    assert dense.shape == (n_out, n_in)
    assert dense.dtype == dtype
    assert torch.equal(topology.gather(dense, indices, active), values)
    assert not dense[~mask].any()
    noisy = values.clone()
    noisy[int(mask.sum()) :] = 1  # what stands in unused slots must not reach the matrix
    assert torch.equal(topology.scatter(noisy, indices, active, n_in), dense)


def test_wide_layers_use_int32():
    mask = torch.zeros(2, 40000, dtype=torch.bool)
    mask[:, -2:] = True
    indices, active = topology.to_condensed(mask, 4)
    assert indices.dtype == torch.int32
    assert torch.equal(topology.to_mask(indices, active, 40000), mask)
    assert topology.to_condensed(mask[:, -32767:], 4)[0].dtype == torch.int16


@pytest.mark.parametrize(
    ("indices", "active", "says"),
    [
        ([0, 3, 1, 2], [1, 1], "in [0, 3) or -1"),
        ([0, -2, 1, 2], [1, 1], "found -2"),
        ([0, -1, 1, 2], [1, 1], "must all be at the end"),
        ([0, 1, 1, 2], [0, 0], "at least one row must be active"),
        ([0, 1, 1, -1], [1, 1], "divide evenly"),
        ([-1, -1, -1, -1], [1, 1], "divide evenly"),
        ([0, 1, 1, 1], [1, 1], "differ within a row, found 1 after 1 in slot 3 (row 1)"),
        ([1, 0, 1, 2], [1, 1], "ascend within a row, found 0 after 1 in slot 1 (row 0)"),
        ([0, 1, 2, 1], [0, 1], "ascend within a row, found 1 after 2 in slot 3 (row 1)"),
    ],
)
def test_find_problem_sees_what_a_kernel_must_not_trust(indices, active, says):
    problem = topology.find_problem(torch.tensor(indices), torch.tensor(active).bool(), 3)
    assert problem is not None
    assert says in problem


def test_random_masks_depend_on_the_generator_only():
    first, again = (topology.random_mask((6, 9), 4, torch.Generator().manual_seed(3)) for _ in range(2))
    other = topology.random_mask((6, 9), 4, torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- bad input -------------------------------------------------------------------------------------------------------

GOOD = {"budget": 8, "drop_fraction": 0.3, "min_salient": None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": 0}, "budget must be between 1 and N * K = 20, got 0"),
        ({"budget": 21}, "budget must be between 1 and N * K = 20, got 21"),
        ({"budget": 3}, "at least one value for each of the 4 active rows, got 3"),
        ({"drop_fraction": 1.5}, "drop_fraction must be in [0, 1], got 1.5"),
        ({"min_salient": 0}, "min_salient must be at least 1, or None"),
        ({"weight": torch.zeros(4, 6)}, "weight must be floating point of the mask's shape (4, 5), got (4, 6)"),
        ({"weight": torch.zeros(4, 5, dtype=torch.int64)}, "weight must be floating point"),
        ({"grad": torch.zeros(4)}, "grad must be floating point of the mask's shape"),
        ({"mask": torch.zeros(4, 5)}, "mask must be a non-empty (N, K) bool tensor"),
        ({"mask": torch.zeros(0, 5, dtype=torch.bool)}, "mask must be a non-empty (N, K) bool tensor"),
        ({"grad": torch.full((4, 5), torch.nan)}, "grad must be finite"),
        ({"grad": torch.full((4, 5), -torch.inf)}, "grad must be finite"),
        ({"weight": torch.full((4, 5), torch.nan)}, "weight must be finite"),
    ],
)
def test_bad_input_gets_a_clear_error(change, says):
    mask = topology.magnitude_mask(torch.rand(4, 5), 2)
    arguments = {"weight": torch.randn(4, 5), "mask": mask, "grad": torch.randn(4, 5)} | GOOD | change
    with pytest.raises(ValueError, match=None) as error:
        update_mask(arguments.pop("weight"), arguments.pop("mask"), arguments.pop("grad"), **arguments)
    assert says in str(error.value)


def test_rows_of_different_fan_in_are_refused():
    with pytest.raises(ValueError, match=r"expected one fan-in for all active rows, got \[1, 2\]"):
        topology.to_condensed(table("XX. X.."), 3)
    with pytest.raises(ValueError, match="expected at most budget = 3 values, got 4"):
        topology.to_condensed(table("XX. XX."), 3)


# --- pruning a dense gradient to what an update can depend on ---------------------------------------------------------


def test_the_decisive_positions_decide_whatever_the_weights_are():
    smaller = 0
    for seed in range(400):
        weight, mask, grad, options = random_case(seed)
        positions = topology.decisive_positions(mask, grad, **options)
        pruned = torch.zeros_like(grad)
        pruned.view(-1)[positions] = grad.view(-1)[positions]
        smaller += positions.numel() < grad.numel()
        for trial in range(4):
            other = torch.randn(weight.shape, generator=torch.Generator().manual_seed(trial)).to(weight.dtype)
            other = [weight, other, other.abs().pow(8), torch.ones_like(other)][trial]
            expected = update_mask(other, mask, grad, **options)
            assert torch.equal(update_mask(other, mask, pruned, **options), expected), f"seed {seed}, trial {trial}"
    assert smaller > 100


def test_pruning_saves_most_of_the_memory_at_the_defaults():
    mask = topology.random_mask((512, 256), 26, torch.Generator().manual_seed(0))
    grad = torch.randn(512, 256)
    for min_salient, share in ((None, 0.25), (7, 0.35)):
        positions = topology.decisive_positions(mask, grad, budget=512 * 26, drop_fraction=0.3, min_salient=min_salient)
        assert positions.numel() < share * mask.numel()
