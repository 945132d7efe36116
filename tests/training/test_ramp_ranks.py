"""The ramp on two real processes: equal to one, small in what is saved, given back at the end, resumed on one process."""

import json
import os

import pytest
import ranks as processes
import torch
from ranks import topologies
from rounding import assert_close_training, path_terms
from safetensors import safe_open
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigL, SRigLConfig, sparsify
from hf_srigl.model.attachment import condensed_layers

CONFIG = SRigLConfig(sparsity=0.8, ramp_until=0.5, update_every=5, gamma_sal=None, stop_updates_at=1.0)
STEPS = 30


def loop(rank, world):
    torch.manual_seed(0)
    net = sparsify(nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16)).double(), CONFIG)
    wrapped = DistributedDataParallel(net) if world > 1 else net
    optimizer = optim.AdamW(net.parameters(), lr=3e-3)
    srigl = SRigL(wrapped, optimizer, total_steps=STEPS)
    data = torch.randn(STEPS, 8, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    history, slots = [], []
    for x in data:
        mine = x.tensor_split(world)[rank]
        optimizer.zero_grad()
        nn.functional.mse_loss(wrapped(mine), mine[:, :16].sin()).backward()
        optimizer.step()
        if srigl.step() is not None:
            history.append([layer.mask() for layer in condensed_layers(net).values()])
            slots.append((net[0].weight.numel(), net[0].budget, net.state_dict()["0.weight"].numel()))
    srigl.close()
    return history, slots, net.state_dict(), net[0].weight.numel()


def trainer(path, **arguments):
    args = training_args(
        path, **{"max_steps": 12, "learning_rate": 5e-3, "save_strategy": "steps", "save_steps": 4, "optim": "sgd"} | arguments
    )  # fmt: skip
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    model.accepts_loss_kwargs = False  # Bert's heads ignore num_items_in_batch (transformers#47688)
    config = SRigLConfig(sparsity=0.8, ramp_until=0.5, update_every=3, gamma_sal=None)
    return SparseTrainer(model=model, args=args, train_dataset=Toy(), srigl_config=config)


def on_two(rank, path):
    run = trainer(os.path.join(path, "run"), per_device_train_batch_size=4)
    run.train()
    whole = loop(rank, 2)
    return whole, topologies(run.model), run.model.state_dict(), loaded_too_late(whole[2])


def loaded_too_late(state):
    net = sparsify(nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16)).double(), CONFIG)
    wrapped = DistributedDataParallel(net)
    srigl = SRigL(wrapped, optim.AdamW(net.parameters()), total_steps=STEPS)
    net.load_state_dict(state)
    try:
        srigl.resume_at(STEPS - 5)
    except RuntimeError as error:
        return str(error)
    return "nothing was said"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return processes.run_once(tmp_path_factory, on_two, 2)


def test_two_ranks_equal_one_process(two):
    history, slots, state, _ = loop(0, 1)
    assert [row[0] for row in slots] == [row[1] for row in slots]  # in one process the tensors shrink at once
    for rank in two:
        others, other_slots, other_state, at_the_end = rank[0]
        assert len(others) == len(history) == 5
        assert all(torch.equal(a, b) for x, y in zip(history, others, strict=True) for a, b in zip(x, y, strict=True))
        for name, tensor in state.items():
            assert_close_training(
                other_state[name], tensor, steps=STEPS, rate=3e-3, terms=20 + 24 + 24 + 16, spread=100, name=name
            )
        # DDP keeps the slots there were; what is saved has as many as one process has
        assert {row[0] for row in other_slots} == {480}
        assert [row[1:] for row in other_slots] == [row[1:] for row in slots]
        assert at_the_end == 24 * 4


def test_checkpoints_of_two_ranks_are_small_and_go_on_in_one_process(two, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    run = base / f"{__name__}-on_two-2" / "run"
    for step, on_ramp in ((4, True), (8, False)):
        folder = run / f"checkpoint-{step}"
        budgets = json.loads((folder / "config.json").read_text())["quantization_config"]["layers"]
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            for name, budget in budgets.items():
                assert file.get_slice(f"{name}.weight").get_shape() == [budget]
        assert (budgets["bert.encoder.layer.0.attention.self.query"] > 32 * 6) == on_ramp
        resumed = trainer(run, per_device_train_batch_size=8)
        resumed.train(resume_from_checkpoint=str(folder))
        assert all(torch.equal(a, b) for a, b in zip(topologies(resumed.model), two[0][1], strict=True))
        for name, tensor in two[0][2].items():
            # gradients are clipped to 1
            rate, terms = resumed.args.learning_rate, path_terms(resumed.model)
            found = resumed.model.state_dict()[name]
            assert_close_training(found, tensor, steps=12, rate=rate, terms=terms, name=name)


def test_loading_a_later_state_into_a_wrapped_model_is_refused(two):
    assert all("layer 0: the checkpoint is further down a sparsity ramp" in rank[3] for rank in two)
    assert all("load the model before wrapping it" in rank[3] for rank in two)
