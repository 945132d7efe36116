"""`make soak`: 300 updates under random sizes, accumulation and numbers of ranks, with invariants checked after each."""

import random

import pytest
import ranks as processes
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel

from hf_srigl import SRigL, SRigLConfig, sparsify
from hf_srigl.rule import topology
from hf_srigl.training.optimizers import movable_states

EPISODES, UPDATES = 15, 20


def episode(rank, path, number):
    draw = random.Random(number)  # alike on all ranks
    world = dist.get_world_size() if dist.is_initialized() else 1
    sizes = [draw.randint(3, 60) for _ in range(draw.randint(2, 5))]
    config = SRigLConfig(
        sparsity=draw.choice([0.3, 0.7, 0.9, 0.98]), update_every=draw.randint(1, 3), stop_updates_at=1.0,
        drop_fraction=draw.choice([0.1, 0.5, 1.0]), gamma_sal=draw.choice([None, 0.3, 1.0]),
        grow=draw.choice(["gradient", "random"]), distribution=draw.choice(["uniform", "erk"]), seed=number,
        init=draw.choice(["magnitude", "random"]),
    )  # fmt: skip
    torch.manual_seed(number)
    net = sparsify(nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))), config)
    wrapped = DistributedDataParallel(net) if world > 1 else net
    make = draw.choice([optim.AdamW, lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9), optim.Adagrad])
    optimizer = make(net.parameters(), lr=1e-2)
    srigl = SRigL(wrapped, optimizer, total_steps=UPDATES * 4)
    data = torch.Generator().manual_seed(1000 * number + rank)
    updates, bad_at, postponed = 0, draw.randint(3, 12), 0
    while updates < UPDATES:
        optimizer.zero_grad()
        micro_batches = draw.randint(1, 4)
        for micro in range(micro_batches):
            x = torch.randn(1 + (rank + draw.randint(0, 6)) % 7, sizes[0], generator=data)
            if srigl.steps + 1 == bad_at and rank == world - 1:
                x[0, 0] = draw.choice([torch.nan, torch.inf])
            last = micro == micro_batches - 1
            with torch.enable_grad() if last or world == 1 else wrapped.no_sync():
                (wrapped(x).square().mean() / micro_batches).backward()
        finite = all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())
        if finite:  # what a gradient scaler does
            optimizer.step()
        before = {name: layer.mask() for name, layer in srigl.layers.items()}
        report = srigl.step()
        check(srigl, optimizer, before, report, finite)
        updates += report is not None
        postponed += bool(srigl._postponed)
    values = torch.cat([p.detach().flatten() for p in net.parameters()])
    return values, [layer.indices.clone() for layer in srigl.layers.values()], updates, postponed


def check(srigl, optimizer, before, report, finite):
    assert finite or report is None
    for name, layer in srigl.layers.items():
        assert topology.find_problem(layer.indices, layer.active, layer.in_features) is None, name
        n_active = int(layer.active.sum())
        assert layer.fan_in == min(layer.in_features, layer.budget // n_active), name
        assert n_active * layer.in_features >= layer.budget, name
        state = movable_states(optimizer, {name: layer.weight})[name]
        unused = layer.indices < 0
        grown = topology.gather(layer.mask() & ~before[name], layer.indices, layer.active)
        for tensor in (layer.weight.detach(), *state):
            assert not tensor[unused].any(), name
            assert not tensor[grown].any(), name
            assert bool(torch.isfinite(tensor).all()), name
        if report is None:
            assert torch.equal(layer.mask(), before[name]), name
    if report is not None:
        rows = {row.name: row for row in report.layers}
        for name, row in rows.items():
            layer = srigl.layers[name]
            changed = layer.mask() & ~before[name]
            assert row.grown == int(changed.sum())
            assert row.dropped == int((before[name] & ~layer.mask()).sum())
            assert row.fan_in == layer.fan_in
            assert row.active == int(layer.active.sum())


@pytest.mark.parametrize("number", [0, pytest.param(None, marks=pytest.mark.soak)])
def test_invariants_hold_after_each_of_many_updates(tmp_path, number):
    """One episode on two ranks in the suite, fifteen on one to four ranks in `make soak`."""
    total = postponed = 0
    for episode_number in range(EPISODES) if number is None else [number]:
        world = 2 if number is not None else 1 + episode_number % 4
        outcomes = processes.run(episode, world, tmp_path, episode_number)
        values, indices, updates, late = outcomes[0]
        for other_values, other_indices, _, _ in outcomes[1:]:
            assert torch.equal(values, other_values)
            assert all(torch.equal(a, b) for a, b in zip(indices, other_indices, strict=True))
        total += updates
        postponed += late
    assert total == UPDATES * (EPISODES if number is None else 1)
    assert postponed > 0 or number is not None
