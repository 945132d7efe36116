"""FSDP2 on real processes: equal to one process with the same global batch, and checkpoints whole and in parts."""

import copy
import dataclasses
import os

import pytest
import ranks as processes
import torch
import torch.distributed.checkpoint as dcp
from ranks import topologies
from rounding import assert_close_training, path_terms
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_srigl import SRigL, SRigLConfig, sparsify
from hf_srigl.model.attachment import condensed_layers

CONFIG = SRigLConfig(sparsity=0.7, update_every=5, drop_fraction=0.5, stop_updates_at=1.0, gamma_sal=1.0)
STEPS = 50
OPTIMIZERS = {
    "adamw": lambda p: optim.AdamW(p, lr=3e-3, foreach=False),
    "sgd": lambda p: optim.SGD(p, lr=3e-2, momentum=0.9),
}


def model(config=CONFIG):
    """Budgets of 144, 112 and 25 values: the last is not the same on all of 2 or 4 ranks."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5))
    return sparsify(net.double(), config)


def shard(net, world):
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        for layer in condensed_layers(net).values():
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    return net


def train(rank, world, net, optimizer, srigl, steps, first=0):
    history = []
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(STEPS, 2, 8, 20, generator=generator, dtype=torch.float64)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        for micro in range(2):
            if world > 1:
                net.set_requires_gradient_sync(micro == 1)
            x = data[step, micro].tensor_split(world)[rank]
            (nn.functional.mse_loss(net(x), x[:, :5].sin()) / 2).backward()
        optimizer.step()
        if srigl.step() is not None:
            history.append(topologies(net))
        with torch.no_grad():
            net(x)  # a forward pass alone leaves the root's parameters whole until they are taken back
    return history


def whole_run(rank, world, config=CONFIG, name="adamw"):
    net = shard(model(config), world)
    optimizer = OPTIMIZERS[name](net.parameters())
    srigl = SRigL(net, optimizer, total_steps=STEPS)
    history = train(rank, world, net, optimizer, srigl, STEPS)
    if world == 1:
        return history, net.state_dict()
    shares = [layer.weight.to_local().numel() for layer in condensed_layers(net).values()]
    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=False))
    return history, state, shares


def resumed(rank, path, world):
    """Saved in parts after 13 steps and loaded into a fresh model; then on to the end."""
    net = shard(model(), world)
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    srigl = SRigL(net, optimizer, total_steps=STEPS)
    train(rank, world, net, optimizer, srigl, 13)
    parts, states = get_state_dict(net, optimizer)
    dcp.save({"model": parts, "optimizer": states}, checkpoint_id=os.path.join(path, "parts"))
    saved = copy.deepcopy(srigl.state_dict())

    net = shard(model(), world)
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    parts, states = get_state_dict(net, optimizer)
    found = {"model": parts, "optimizer": states}
    dcp.load(found, checkpoint_id=os.path.join(path, "parts"))
    set_state_dict(net, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    srigl = SRigL(net, optimizer, total_steps=STEPS)
    srigl.load_state_dict(saved)
    train(rank, world, net, optimizer, srigl, STEPS - 13, first=13)
    return get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))


def everything(rank, path, world):
    return {
        "adamw": whole_run(rank, world),
        "sgd": whole_run(rank, world, name="sgd"),
        "random": whole_run(rank, world, dataclasses.replace(CONFIG, grow="random", gamma_sal=None)),
        "resumed": resumed(rank, path, world),
        "ramp": refused(world, dataclasses.replace(CONFIG, ramp_until=0.5)),
    }


def refused(world, config):
    net = shard(model(config), world)
    try:
        SRigL(net, OPTIMIZERS["sgd"](net.parameters()), total_steps=10)
    except ValueError as error:
        return str(error)
    return "nothing was said"


@pytest.fixture(scope="module", params=[2, 4])
def outcomes(request, tmp_path_factory):
    return processes.run_once(tmp_path_factory, everything_on[request.param], request.param)


def everything_on_2(rank, path):
    return everything(rank, path, 2)


def everything_on_4(rank, path):
    return everything(rank, path, 4)


everything_on = {2: everything_on_2, 4: everything_on_4}


@pytest.mark.parametrize("name", ["adamw", "sgd", "random"])
def test_sharded_ranks_equal_one_process(outcomes, name):
    config = dataclasses.replace(CONFIG, grow="random", gamma_sal=None) if name == "random" else CONFIG
    history, expected = whole_run(0, 1, config, "adamw" if name == "random" else name)
    assert len(history) == 9
    if name == "adamw":
        assert not all(bool(tensor.all()) for tensor in history[-1] if tensor.dtype == torch.bool)  # some are ablated
    for outcome in outcomes:
        found, state, shares = outcome[name]
        assert max(shares) < 144 / len(outcomes) + 1  # the weights really are in parts
        for step, other in zip(history, found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(step, other, strict=True))
        for key, tensor in expected.items():
            # gradients of SGD are below 1
            rate, spread = (3e-2 / (1 - 0.9), 1) if name == "sgd" else (3e-3, 100)
            terms = path_terms(model())
            assert_close_training(state[key], tensor, steps=STEPS, rate=rate, terms=terms, spread=spread, name=key)


def test_resuming_from_a_checkpoint_in_parts_is_bit_identical(outcomes):
    for outcome in outcomes:
        for key, tensor in outcome["adamw"][1].items():
            assert torch.equal(outcome["resumed"][key], tensor), key


def test_a_ramp_is_refused(outcomes):
    assert all("a sparsity ramp changes sizes that FSDP2 has laid out" in outcome["ramp"] for outcome in outcomes)
