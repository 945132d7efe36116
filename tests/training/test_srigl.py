"""SRigL in a bare training loop: against the masked-dense simulation, and hazard by hazard."""

import copy
import dataclasses

import pytest
import torch
from accelerate import Accelerator
from simulation import MaskedDense, dense_twin
from torch import nn, optim

from hf_srigl import CondensedLinear, SRigL, SRigLConfig, sparsify
from hf_srigl.model.attachment import condensed_layers
from hf_srigl.rule import topology

OPTIMIZERS = {
    "adamw": lambda p: optim.AdamW(p, lr=3e-2, weight_decay=0.1),
    "amsgrad": lambda p: optim.AdamW(p, lr=3e-2, amsgrad=True, foreach=False),
    "fused": lambda p: optim.AdamW(p, lr=3e-2, fused=True),
    "sgd": lambda p: optim.SGD(p, lr=1e-1, momentum=0.9, weight_decay=1e-2),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=1e-1),
}


def mlp(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5)).to(dtype)


def batches(steps, micro=1, dtype=torch.float64, seed=1):
    """Learnable, with inputs that matter unequally, so that some neurons have little to do."""
    g = torch.Generator().manual_seed(seed)
    teacher = torch.randn(20, 5, generator=g, dtype=dtype) * (torch.arange(20) < 6)[:, None]
    x = torch.randn(steps, micro, 12, 20, generator=g, dtype=dtype)
    return [[(part, part @ teacher) for part in step] for step in x]


def train(model, optimizer, srigl, data, *, clip=None, before=None, after=None):
    for step in data:
        optimizer.zero_grad()
        for x, y in step:
            (nn.functional.mse_loss(model(x), y) / len(step)).backward()
        if before is not None:
            before()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        report = srigl.step()
        if after is not None:
            after(report)


CONFIG = SRigLConfig(sparsity=0.7, update_every=4, drop_fraction=0.5, stop_updates_at=0.8, gamma_sal=0.85)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("micro", [1, 3])
def test_training_equals_the_masked_dense_simulation(optimizer_name, micro):
    config, steps = CONFIG, 40
    model = sparsify(mlp(), dataclasses.replace(config, exclude_modules=["4"]))
    simulated = copy.deepcopy(model)
    rows = {}
    for name, layer in condensed_layers(simulated).items():
        twin, mask = dense_twin(layer)
        simulated.set_submodule(name, twin)
        rows[name] = (twin, mask, True)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    optimizer_simulated = OPTIMIZERS[optimizer_name](simulated.parameters())
    srigl = SRigL(model, optimizer, total_steps=steps)
    simulation = MaskedDense(
        rows, optimizer_simulated, total_steps=steps, interval=4, alpha=0.5, stop=0.8, gamma_sal=0.85
    )
    reports = []
    data = batches(steps, micro)
    train(model, optimizer, srigl, data, clip=5.0, after=reports.append)
    # clipping in the simulation sees the masked gradients, as the condensed model does
    train(simulated, optimizer_simulated, simulation, data, clip=5.0, before=simulation.before_optimizer)

    for name, layer in condensed_layers(model).items():
        assert torch.equal(layer.mask(), simulation.masks[name])
        difference = (layer.to_dense() - simulated.get_submodule(name).weight).abs().max()
        assert difference < 1e-10, f"{name}: {difference}"
    updates = [r for r in reports if r is not None]
    assert [r.step for r in updates] == [4, 8, 12, 16, 20, 24, 28]
    assert all(r.dropped > 0 for r in updates)
    assert updates[-1].active_neurons < 1.0  # ablation took part


def test_the_simulation_can_tell_a_wrong_rule():
    """The control: moments that survive their weight make a difference the comparison above would see."""
    outcome = []
    for zero_moments in (True, False):
        model = mlp()
        rows = {"0": (model[0], topology.magnitude_mask(model[0].weight, 6), True)}
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        simulation = MaskedDense(
            rows, optimizer, total_steps=40, interval=4, alpha=0.5, stop=0.8, gamma_sal=0.85, zero_moments=zero_moments
        )
        train(model, optimizer, simulation, batches(40), before=simulation.before_optimizer)
        outcome.append(model[0].weight.detach())
    assert (outcome[0] - outcome[1]).abs().max() > 1e-3


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_state_of_grown_weights_starts_at_zero_and_kept_state_is_kept(optimizer_name):
    model = sparsify(mlp(), dataclasses.replace(CONFIG, gamma_sal=None))
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    srigl = SRigL(model, optimizer, total_steps=40)
    layer = model[0]
    data = batches(4)
    train(model, optimizer, srigl, data[:3])
    x, y = data[3][0]
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    old_mask = layer.mask()

    def dense_state():
        state = optimizer.state[layer.weight]
        vectors = {k: v for k, v in state.items() if torch.is_tensor(v) and v.shape == layer.weight.shape}
        return {k: topology.scatter(v, layer.indices, layer.active, 20) for k, v in vectors.items()}

    before = dense_state() | {"weight": layer.to_dense()}
    assert srigl.step() is not None
    after = dense_state() | {"weight": layer.to_dense()}
    grown, kept = layer.mask() & ~old_mask, layer.mask() & old_mask
    assert grown.any()
    assert len(before) >= 2
    for name in before:
        assert not after[name][grown].any(), name
        assert torch.equal(after[name][kept], before[name][kept]), name
    assert layer.weight.grad is not None
    assert not topology.scatter(layer.weight.grad, layer.indices, layer.active, 20)[grown].any()


def test_gradients_are_averaged_over_micro_batches_before_the_absolute_value():
    """Two micro-batches whose dense gradients cancel at one position must not grow there."""
    weight = torch.tensor([[5.0, 0.1, 0, 0]])
    layer = CondensedLinear.from_dense(weight, weight != 0)
    model = nn.Sequential(layer)
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    config = SRigLConfig(update_every=1, drop_fraction=1.0, stop_updates_at=1.0, gamma_sal=None)
    srigl = SRigL(model, optimizer, total_steps=2, config=config)
    model(torch.tensor([[0.0, 0, 9.0, 2.0]])).sum().backward()
    model(torch.tensor([[0.0, 0, -9.0, 2.0]])).sum().backward()  # +9 - 9 = 0 against 2 + 2 = 4
    optimizer.step()
    assert srigl.step() is not None
    assert layer.mask().tolist() == [[True, False, False, True]]


def test_micro_batches_are_not_steps():
    model = sparsify(mlp(), CONFIG)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    srigl = SRigL(model, optimizer, total_steps=20)
    steps = []
    train(model, optimizer, srigl, batches(9, micro=4), after=lambda r: steps.append(r.step) if r else None)
    assert steps == [4, 8]
    assert srigl.steps == 9


def test_the_budget_survives_ablation_and_neurons_return():
    model = sparsify(mlp(), dataclasses.replace(CONFIG, gamma_sal=1.0, update_every=2))
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=60)
    fan_ins, reports = [], []

    def look(report):
        if report is not None:
            reports.append(report)
            for layer in srigl.layers.values():
                n_active = int(layer.active.sum())
                assert layer.fan_in == min(layer.in_features, layer.budget // n_active)
                assert topology.find_problem(layer.indices, layer.active, layer.in_features) is None
            fan_ins.append(srigl.layers["0"].fan_in)

    train(model, optimizer, srigl, batches(60), after=look)
    assert max(fan_ins) > srigl.layers["0"].initial_fan_in
    active = [row.active for r in reports for row in r.layers if row.name == "0"]
    assert any(b > a for a, b in zip(active, active[1:], strict=False))  # some neuron came back


def test_no_tensor_ever_changes_its_shape_or_storage():
    model = sparsify(mlp(), CONFIG)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=20)
    tensors = {name: (t.shape, t.data_ptr()) for name, t in model.state_dict().items()}
    train(model, optimizer, srigl, batches(16))
    assert {name: (t.shape, t.data_ptr()) for name, t in model.state_dict().items()} == tensors


def run(config, steps=24, lr=0.05, model=None):
    model = sparsify(mlp() if model is None else model, config)
    optimizer = optim.AdamW(model.parameters(), lr=lr)
    srigl = SRigL(model, optimizer, total_steps=steps)
    reports = []
    train(model, optimizer, srigl, batches(steps), after=reports.append)
    return model, reports


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": 0.5},
        {"distribution": "erk"},
        {"target_modules": ["0"]},
        {"exclude_modules": ["4"]},
        {"never_ablate": ["0"]},
        {"init": "random"},
        {"update_every": 6},
        {"update_every": 0.25},
        {"update_every": None},
        {"drop_fraction": 0.1},
        {"stop_updates_at": 0.4},
        {"gamma_sal": None},
        {"gamma_sal": 0.5},
        {"grow": "random"},
        {"stagger": True},
        {"seed": 1, "init": "random"},
        {"seed": 1, "grow": "random"},
    ],
    ids=str,
)
def test_every_option_changes_the_outcome(change):
    base = dataclasses.replace(CONFIG, gamma_sal=1.0)
    partner = dataclasses.replace(
        base, **{k: v for k, v in change.items() if k in ("init", "grow") and "seed" in change}
    )
    reference, _ = run(partner)
    changed, _ = run(dataclasses.replace(base, **change))
    ours, theirs = reference.state_dict(), changed.state_dict()
    same = ours.keys() == theirs.keys() and all(
        ours[k].shape == theirs[k].shape and torch.equal(ours[k], theirs[k]) for k in ours
    )
    assert not same


def test_the_same_options_give_the_same_outcome():
    for config in (CONFIG, dataclasses.replace(CONFIG, grow="random", init="random", stagger=True)):
        first, again = run(config)[0].state_dict(), run(config)[0].state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_never_ablate_keeps_all_neurons_of_a_layer():
    model, _ = run(dataclasses.replace(CONFIG, gamma_sal=1.0, never_ablate=["2"]))
    assert int(model[0].active.sum()) < 24
    assert int(model[2].active.sum()) == 16


def test_a_static_topology_never_changes_and_collects_nothing():
    model = sparsify(mlp(), dataclasses.replace(CONFIG, update_every=None))
    masks = {name: layer.mask() for name, layer in condensed_layers(model).items()}
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=8)
    train(model, optimizer, srigl, batches(8), after=lambda r: r is None or pytest.fail("an update"))
    assert all(torch.equal(layer.mask(), masks[name]) for name, layer in condensed_layers(model).items())


def test_updates_stop():
    _, reports = run(dataclasses.replace(CONFIG, stop_updates_at=0.5))
    assert [r.step for r in reports if r] == [4, 8]  # 12 == 0.5 * 24 is not below it


def test_staggered_layers_update_in_turn_and_few_dense_gradients_exist_at_once():
    model = sparsify(mlp(), dataclasses.replace(CONFIG, stagger=True, update_every=6))
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=24)
    seen, most = [], []

    def count():
        most.append(sum(layer.dense_grad.value is not None for layer in srigl.layers.values()))

    train(
        model,
        optimizer,
        srigl,
        batches(24),
        before=count,
        after=lambda r: r and seen.append((r.step, r.layers[0].name)),
    )
    assert seen == [(6, "0"), (8, "2"), (10, "4"), (12, "0"), (14, "2"), (16, "4"), (18, "0")]
    assert max(most) == 1


def test_random_growth_needs_no_dense_gradient():
    model = sparsify(mlp(), dataclasses.replace(CONFIG, grow="random"))
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=24)
    collected, reports = [], []
    train(
        model,
        optimizer,
        srigl,
        batches(12),
        before=lambda: collected.extend(layer.dense_grad.value for layer in srigl.layers.values()),
        after=reports.append,
    )
    assert all(value is None for value in collected)
    assert sum(r.grown for r in reports if r) > 0


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_postpones_the_update_and_changes_nothing(bad, grow):
    model = sparsify(mlp(), dataclasses.replace(CONFIG, grow=grow))
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=40)
    data = batches(10)
    train(model, optimizer, srigl, data[:3])
    x, y = data[3][0]
    nn.functional.mse_loss(model(x * bad), y).backward()  # what an fp16 overflow looks like; the scaler skips the step
    before = copy.deepcopy(model.state_dict())
    assert srigl.step() is None
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    steps = []
    train(model, optimizer, srigl, data[4:], after=lambda r: steps.append(r.step) if r else None)
    assert steps == [5, 8]  # made up for at once, then on schedule again


def test_an_update_that_is_postponed_again_says_so_once_a_step(caplog):
    model = sparsify(mlp(), CONFIG)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=40)
    data = batches(8)
    train(model, optimizer, srigl, data[:3])
    masks = [layer.mask() for layer in srigl.layers.values()]
    said = []
    for step, bad in zip(data[3:6], (torch.nan, torch.inf, -torch.inf), strict=True):
        optimizer.zero_grad()
        model(step[0][0] * bad).sum().backward()
        assert srigl.step() is None  # the optimizer's step is skipped, as a gradient scaler would
        said.append([text for record in caplog.records if "postponed" in (text := record.getMessage())])
        assert all(torch.equal(layer.mask(), m) for layer, m in zip(srigl.layers.values(), masks, strict=True))
    assert [len(messages) for messages in said] == [0, 1, 2]  # the first postponement is ordinary under a scaler
    assert said[2][1].startswith("step 6: the topology update is postponed again, since gradients or weights")
    optimizer.zero_grad()
    train(model, optimizer, srigl, data[6:7])
    assert any(not torch.equal(layer.mask(), m) for layer, m in zip(srigl.layers.values(), masks, strict=True))


@pytest.mark.parametrize("micro", [[1] * 20, [2] * 20, [2, 2, 1, 3] * 5], ids=str)
def test_accelerate_tells_the_last_micro_batch_and_pruning_there_changes_nothing(micro):
    """The same updates as in a plain loop, also with uneven accumulation; calls for other micro-batches do nothing."""
    config = dataclasses.replace(CONFIG, sparsity=0.8, gamma_sal=0.3, update_every=3)
    data = [step[:count] for step, count in zip(batches(20, micro=3), micro, strict=True)]

    def plain():
        model = sparsify(mlp(), config)
        optimizer = optim.AdamW(model.parameters(), lr=0.05)
        srigl, reports = SRigL(model, optimizer, total_steps=40), []
        train(model, optimizer, srigl, data, after=reports.append)
        return model, reports

    def accelerated():
        model = sparsify(mlp(), config)
        accelerator = Accelerator(cpu=True)
        optimizer = accelerator.prepare(optim.AdamW(model.parameters(), lr=0.05))
        srigl, reports, pruned = SRigL(model, optimizer, total_steps=40), [], False
        for step in data:
            for i, (x, y) in enumerate(step):
                accelerator.gradient_state._set_sync_gradients(i == len(step) - 1)  # as `accumulate` and the Trainer do
                accelerator.backward(nn.functional.mse_loss(model(x), y) / len(step))
                pruned |= any(layer.dense_grad.values is not None for layer in srigl.layers.values())
                optimizer.step()
                report = srigl.step()
                if i == len(step) - 1:
                    reports.append(report)
                else:
                    assert report is None
                optimizer.zero_grad()
        assert pruned
        assert srigl.steps == len(data)
        return model, reports

    (model, reports), (other, other_reports) = plain(), accelerated()
    assert [r.step for r in reports if r] == [3, 6, 9, 12, 15, 18]
    assert reports == other_reports
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


def test_a_second_backward_pass_for_the_last_micro_batch_is_an_error_that_says_what_to_do():
    model = sparsify(mlp(), dataclasses.replace(CONFIG, sparsity=0.8, gamma_sal=None, update_every=1))
    optimizer = Accelerator(cpu=True).prepare(optim.AdamW(model.parameters()))
    SRigL(model, optimizer, total_steps=40)
    x, y = batches(1)[0][0]
    nn.functional.mse_loss(model(x), y).backward()
    with pytest.raises(RuntimeError, match="add the losses and call backward once for each micro-batch"):
        nn.functional.mse_loss(model(x), y).backward()


def test_backward_passes_that_do_not_count_leave_no_trace():
    """A batch skipped with zero_grad, and torch.autograd.grad, in an update step."""
    outcome = []
    for disturb in (False, True):
        model = sparsify(mlp(), CONFIG)
        optimizer = optim.AdamW(model.parameters(), lr=0.05)
        srigl = SRigL(model, optimizer, total_steps=40)
        noise = 100 * torch.randn(8, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        for step in batches(12):
            x, y = step[0]
            if disturb:
                model(noise).square().sum().backward()
                optimizer.zero_grad()
                torch.autograd.grad(model(noise).square().sum(), list(model.parameters()))
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            srigl.step()
            optimizer.zero_grad()
        outcome.append(model.state_dict())
    assert all(torch.equal(outcome[0][name], outcome[1][name]) for name in outcome[0])


def test_one_bad_layer_postpones_all():
    model = sparsify(mlp(), CONFIG)
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    srigl = SRigL(model, optimizer, total_steps=40)
    train(model, optimizer, srigl, batches(3))
    before = [layer.mask() for layer in srigl.layers.values()]
    x, y = batches(1)[0][0]
    nn.functional.mse_loss(model(x), y).backward()
    held = model[4].dense_grad
    (held.values if held.value is None else held.value).view(-1)[0] = torch.nan
    assert srigl.step() is None
    assert all(torch.equal(a, layer.mask()) for a, layer in zip(before, srigl.layers.values(), strict=True))


def test_a_layer_that_took_no_part_is_left_alone():
    model = sparsify(mlp(), CONFIG)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=40)
    mask = model[4].mask()
    for _ in range(4):
        optimizer.zero_grad()
        model[:4](torch.randn(8, 20, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        report = srigl.step()
    assert {row.name for row in report.layers} == {"0", "2"}
    assert torch.equal(model[4].mask(), mask)


def test_frozen_layers_keep_their_topology():
    model = sparsify(mlp(), CONFIG)
    model[0].weight.requires_grad_(False)
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=8)
    mask, reports = model[0].mask(), []
    train(model, optimizer, srigl, batches(4), after=reports.append)
    assert {row.name for row in reports[-1].layers} == {"2", "4"}
    assert torch.equal(model[0].mask(), mask)


def test_a_module_used_twice_and_a_shared_module_train():
    shared = nn.Linear(20, 20, dtype=torch.float64)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(20, 5, dtype=torch.float64))
    model = sparsify(model, CONFIG)
    assert model[0] is model[2]
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=20)
    assert list(srigl.layers) == ["0", "3"]
    reports = []
    train(model, optimizer, srigl, batches(8), after=reports.append)
    assert [r.step for r in reports if r] == [4, 8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_train(dtype):
    model = sparsify(mlp(dtype), CONFIG)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    srigl = SRigL(model, optimizer, total_steps=20)
    reports = []
    train(model, optimizer, srigl, batches(8, dtype=dtype), after=reports.append)
    assert [r.step for r in reports if r] == [4, 8]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(("sparsity", "fan_in"), [(0.96, 1), (0.0, 20)])
def test_the_extremes_of_fan_in(sparsity, fan_in):
    model, reports = run(dataclasses.replace(CONFIG, sparsity=sparsity))
    assert model[0].initial_fan_in == fan_in
    assert [r.step for r in reports if r] == [4, 8, 12, 16]


def test_reports_count_what_changed_and_itop_never_falls():
    model = sparsify(mlp(), CONFIG)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=40)
    masks = {name: layer.mask() for name, layer in srigl.layers.items()}
    tried = {name: mask.clone() for name, mask in masks.items()}
    rates = []

    def look(report):
        if report is None:
            return
        for row in report.layers:
            new = srigl.layers[row.name].mask()
            assert row.dropped == int((masks[row.name] & ~new).sum())
            assert row.grown == int((new & ~masks[row.name]).sum())
            masks[row.name] = new
            tried[row.name] |= new
            assert row.itop == pytest.approx(float(tried[row.name].float().mean()))
        positions = sum(m.numel() for m in masks.values())
        assert report.sparsity == pytest.approx(1 - sum(int(m.sum()) for m in masks.values()) / positions)
        assert report.itop == pytest.approx(sum(int(t.sum()) for t in tried.values()) / positions)
        assert "ITOP" in str(report)
        rates.append(report.itop)

    train(model, optimizer, srigl, batches(30), after=look)
    assert rates == sorted(rates)
    assert rates[-1] > rates[0]


@pytest.mark.parametrize("stop_at", [3, 4, 5, 7, 8, 9, 20])
@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_a_resumed_run_is_bit_identical(stop_at, grow):
    config = dataclasses.replace(CONFIG, grow=grow, gamma_sal=1.0)
    data = batches(24)

    def start():
        model = sparsify(mlp(), config)
        optimizer = optim.AdamW(model.parameters(), lr=0.05)
        return model, optimizer, SRigL(model, optimizer, total_steps=24)

    whole_reports = []
    whole = start()
    train(*whole, data, after=whole_reports.append)
    first = start()
    train(*first, data[:stop_at])
    saved = copy.deepcopy([part.state_dict() for part in first])
    model, optimizer, srigl = start()
    for part, state in zip((model, optimizer, srigl), saved, strict=True):
        part.load_state_dict(state)
    reports = []
    train(model, optimizer, srigl, data[stop_at:], after=reports.append)
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert reports == whole_reports[stop_at:]


def test_a_postponed_update_survives_resuming():
    model = sparsify(mlp(), CONFIG)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    srigl = SRigL(model, optimizer, total_steps=40)
    data = batches(6)
    train(model, optimizer, srigl, data[:3])
    x, y = data[3][0]
    nn.functional.mse_loss(model(x * torch.inf), y).backward()
    assert srigl.step() is None
    resumed = SRigL(model, optimizer, total_steps=40)
    resumed.load_state_dict(srigl.state_dict())
    reports = []
    train(model, optimizer, resumed, data[4:5], after=reports.append)
    assert reports[0].step == 5


def test_leftover_gradients_of_a_failed_attempt_do_not_count():
    model = sparsify(mlp(), dataclasses.replace(CONFIG, update_every=1))
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    SRigL(model, optimizer, total_steps=8)
    model(torch.randn(8, 20, dtype=torch.float64)).sum().backward()
    assert model[0].dense_grad.seen
    srigl = SRigL(model, optimizer, total_steps=8)
    assert not model[0].dense_grad.seen
    srigl.close()
    assert not model[0].dense_grad.wanted


class Blockwise(optim.SGD):
    """Keeps state that does not follow single weights."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["codes"] = torch.zeros(p.shape, dtype=torch.uint8)
        return super().step(closure)


def test_optimizer_state_that_cannot_move_is_an_error_and_nothing_changes():
    model = sparsify(mlp(), CONFIG)
    optimizer = Blockwise(model.parameters(), lr=0.01)
    srigl = SRigL(model, optimizer, total_steps=40)
    masks = [layer.mask() for layer in srigl.layers.values()]
    with pytest.raises(ValueError, match=r"layer 0: Blockwise keeps Blockwise.state.*codes.*torch.uint8, .* use AdamW"):
        train(model, optimizer, srigl, batches(4))
    assert all(torch.equal(a, layer.mask()) for a, layer in zip(masks, srigl.layers.values(), strict=True))


def test_refusals_at_the_start():
    model = sparsify(mlp(torch.float32), CONFIG)
    adam = optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="no condensed layer: call sparsify"):
        SRigL(mlp(), adam, total_steps=10)
    with pytest.raises(ValueError, match="total_steps must be a positive whole number of optimizer steps, got 0"):
        SRigL(model, adam, total_steps=0)
    with pytest.raises(ValueError, match=r"layer 0: its weight is trainable, but the optimizer does not hold it"):
        SRigL(model, optim.AdamW(mlp().parameters()), total_steps=10)
    with pytest.raises(ValueError, match="LBFGS cannot train a condensed model"):
        SRigL(model, optim.LBFGS(model.parameters()), total_steps=10)
    with pytest.raises(ValueError, match="Rprop cannot train a condensed model"):
        SRigL(model, optim.Rprop(model.parameters()), total_steps=10)
    eight_bit = type("AdamW8bit", (optim.AdamW,), {})  # as bitsandbytes and torchao name theirs
    with pytest.raises(ValueError, match="AdamW8bit cannot train a condensed model: its 8-bit or 4-bit state"):
        SRigL(model, eight_bit(model.parameters()), total_steps=10)
    layer = CondensedLinear(4, 4, 4)
    with pytest.raises(ValueError, match="carries no SRigLConfig"):
        SRigL(layer, optim.SGD(layer.parameters()), total_steps=10)
    state = SRigL(model, adam, total_steps=10).state_dict()
    other = sparsify(nn.Sequential(nn.Linear(20, 8)), CONFIG)
    with pytest.raises(ValueError, match="state is of another model: condensed layers differ in 2, 4"):
        SRigL(other, optim.SGD(other.parameters()), total_steps=10).load_state_dict(state)
