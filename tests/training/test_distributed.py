"""Two real processes on gloo: one topology, gradients averaged before the absolute value, equal to one process."""

import copy
import dataclasses
import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rounding import assert_close_training, path_terms
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel

from conftest import Toy, tiny_bert, training_args
from hf_srigl import CondensedLinear, SparseTrainer, SRigL, SRigLConfig, sparsify
from hf_srigl.model.attachment import hide_topology_from_ddp

CONFIG = SRigLConfig(sparsity=0.7, update_every=3, drop_fraction=0.5, stop_updates_at=1.0, gamma_sal=1.0)
STEPS, RANKS = 20, 2


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Start the processes once, run every scenario in them; results[scenario] is a list with one entry for each rank."""
    path = tmp_path_factory.mktemp("ranks")
    mp.start_processes(worker, (free_port(), str(path)), nprocs=RANKS, start_method="spawn")
    ranks = [torch.load(path / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]
    return {scenario: [rank[scenario] for rank in ranks] for scenario in ranks[0]}


def worker(rank, port, path):
    variables = {"MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS}
    os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    if dist.get_world_size() != RANKS:
        raise RuntimeError(f"expected {RANKS} ranks, found {dist.get_world_size()}")
    outcome = {
        "gradient": ddp(rank, CONFIG),
        "random": ddp(rank, dataclasses.replace(CONFIG, grow="random")),
        "cancelling": cancelling(rank),
        "bad": bad_on_one_rank(),
        "trainer": trainer(path),
        "held": held_by_another_module(),
    }
    torch.save(outcome, f"{path}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 5)).double()


def data():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, 2, 8, 20, generator=g, dtype=torch.float64)  # steps, micro-batches, global batch
    return x, x[..., :5].tanh()


def run(net, wrapped, share, total=STEPS):
    """`share` picks this process's part of every global micro-batch; gradients are accumulated over two of them."""
    optimizer = optim.AdamW(net.parameters(), lr=0.03)
    srigl = SRigL(wrapped, optimizer, total_steps=total)
    history, reports = [], []
    x, y = data()
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(2):
            sync = micro == 1 or not isinstance(wrapped, DistributedDataParallel)
            with torch.enable_grad() if sync else wrapped.no_sync():
                loss = nn.functional.mse_loss(wrapped(x[step, micro][share]), y[step, micro][share])
                (loss / 2).backward()
        optimizer.step()
        report = srigl.step()
        if report is not None:
            reports.append(report)
            history.append(torch.cat([layer.indices.clone() for layer in srigl.layers.values()]))
    return history, reports


def ddp(rank, config):
    net = sparsify(model(), config)
    if rank == 1:  # a rank that begins with another topology is corrected, not believed
        net[0].rewire(net[0].mask().roll(1, dims=1))
    wrapped = DistributedDataParallel(net)
    history, reports = run(net, wrapped, slice(rank * 4, rank * 4 + 4))
    return net.state_dict(), history, [str(report) for report in reports]


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_two_ranks_equal_one_process_with_the_same_global_batch(results, grow):
    config = dataclasses.replace(CONFIG, grow=grow)
    ranks = results[grow]
    single = sparsify(model(), config)
    history, reports = run(single, single, slice(0, 8))
    assert len(history) == 6
    assert min(report.active_neurons for report in reports) < 1
    for state, other, lines in ranks:
        assert lines == [str(r) for r in reports]
        assert all(torch.equal(a, b) for a, b in zip(history, other, strict=True))
        for name, tensor in single.state_dict().items():
            assert_close_training(
                state[name], tensor, steps=STEPS, rate=0.03, terms=path_terms(single), spread=100, name=name
            )
    for name in ranks[0][0]:
        assert torch.equal(ranks[0][0][name], ranks[1][0][name])


def cancelling(rank):
    """Rank 0 sees +9, rank 1 sees -9 at column 2: the mean is 0, the mean of absolute values would be the largest."""
    weight = torch.tensor([[5.0, 0.1, 0, 0]])
    layer = CondensedLinear.from_dense(weight, weight != 0)
    optimizer = optim.SGD(layer.parameters(), lr=0.0)
    config = SRigLConfig(update_every=1, drop_fraction=1.0, stop_updates_at=1.0, gamma_sal=None)
    srigl = SRigL(layer, optimizer, total_steps=2, config=config)
    layer(torch.tensor([[0.0, 0, 9.0 if rank == 0 else -9.0, 2.0]])).sum().backward()
    optimizer.step()
    assert srigl.step() is not None
    return layer.mask().tolist()


def test_gradients_are_averaged_over_ranks_before_the_absolute_value(results):
    assert results["cancelling"] == [[[True, False, False, True]]] * RANKS


def bad_on_one_rank():
    rank = dist.get_rank()
    net = sparsify(model(), dataclasses.replace(CONFIG, update_every=1))
    optimizer = optim.SGD(net.parameters(), lr=0.0)
    srigl = SRigL(net, optimizer, total_steps=10)
    x = torch.randn(4, 20, dtype=torch.float64)
    # step 1: NaN on rank 1 only; step 2: rank 1 does not reach the second layer
    net(x * (torch.nan if rank == 1 else 1.0)).sum().backward()
    first = srigl.step()
    optimizer.zero_grad()
    (net if rank == 0 else net[:1])(x).sum().backward()
    second = srigl.step()
    rows = sorted(row.name for row in second.layers)
    return first, rows, {name: layer.mask() for name, layer in srigl.layers.items()}


def test_all_ranks_decide_alike_when_one_has_nan_or_nothing(results):
    (first, rows, masks), (first1, rows1, masks1) = results["bad"]
    assert first is first1 is None
    assert rows == rows1 == ["0", "2"]
    assert all(torch.equal(masks[name], masks1[name]) for name in masks)


def held_by_another_module():
    outer = nn.Sequential(sparsify(model(), CONFIG))
    hide_topology_from_ddp(outer)
    wrapped = DistributedDataParallel(outer)
    _, reports = run(outer, wrapped, slice(0, 4))
    return [row.name for row in reports[0].layers]


def test_a_sparse_model_inside_another_module(results):
    assert results["held"] == [["0.0", "0.2"]] * RANKS


def trainer(path):
    args = training_args(
        path, max_steps=8, learning_rate=5e-3, per_device_train_batch_size=4, ddp_find_unused_parameters=False
    )
    net = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    run = SparseTrainer(model=net, args=args, train_dataset=Toy(), srigl_config=CONFIG)
    run.train()
    updates = [row["step"] for row in run.state.log_history if "srigl/itop" in row]
    return run.accelerator.num_processes, updates, copy.deepcopy(run.model.state_dict())


def test_the_trainer_on_two_ranks_keeps_one_topology(results):
    (ranks, updates, first), (_, _, second) = results["trainer"]
    assert ranks == RANKS
    assert updates == [3, 6]
    start = sparsify(tiny_bert(), CONFIG).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], start[name]) for name in first if name.endswith("indices"))
