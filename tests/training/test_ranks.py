"""Two and four real processes against one with the same global batch: topologies, parameters, bytes, disagreements."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import ranks as processes
import torch
import torch.distributed as dist
from accelerate import Accelerator
from ranks import Watch, topologies
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigL, SRigLConfig, sparsify
from hf_srigl.rule import topology
from hf_srigl.training.fingerprint import fingerprint_of

CONFIG = SRigLConfig(sparsity=0.7, update_every=5, drop_fraction=0.5, stop_updates_at=1.0, gamma_sal=1.0)
STEPS, GLOBAL_BATCH = 50, 8


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5)).to(dtype)


def plain_loop(rank, world):
    """DDP and no_sync; the micro-batches of a step are of unlike sizes, and so are the ranks' shares of each."""
    net = sparsify(model(), CONFIG)
    wrapped = DistributedDataParallel(net) if world > 1 else net
    optimizer = optim.AdamW(net.parameters(), lr=3e-3)
    srigl = SRigL(wrapped, optimizer, total_steps=STEPS)
    generator = torch.Generator().manual_seed(1)
    history, reports = [], []
    for _ in range(STEPS):
        x = torch.randn(11, 20, generator=generator)
        optimizer.zero_grad()
        for micro, last in ((x[:8], False), (x[8:], True)):
            mine = micro.tensor_split(world)[rank]  # 8 in equal parts, 3 in unequal ones: with 4 ranks one has nothing
            with torch.enable_grad() if last or world == 1 else wrapped.no_sync():
                loss = nn.functional.mse_loss(wrapped(mine), mine[:, :5].sin(), reduction="sum")
                (loss * world / len(x)).backward()
        optimizer.step()
        report = srigl.step()
        if report is not None:
            reports.append(report)
            history.append(topologies(net))
    return history, net.state_dict(), reports


def accelerate_loop(rank, world):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    data = torch.randn(200, 20, generator=torch.Generator().manual_seed(2))
    net = sparsify(model(), CONFIG)
    optimizer = optim.AdamW(net.parameters(), lr=3e-3)
    loader = DataLoader(TensorDataset(data), batch_size=GLOBAL_BATCH // world)
    prepared, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    srigl = SRigL(prepared, optimizer, total_steps=STEPS)
    history = []
    for _ in range(4):
        for (x,) in loader:
            with accelerator.accumulate(prepared):
                accelerator.backward(nn.functional.mse_loss(prepared(x), x[:, :5].sin()))
                optimizer.step()
                if srigl.step() is not None:
                    history.append(topologies(net))
                optimizer.zero_grad()
    assert accelerator.num_processes == world
    return history, net.state_dict(), srigl.steps


def trainer_loop(rank, world, path):
    args = training_args(
        f"{path}/trainer", max_steps=STEPS, optim="sgd", learning_rate=0.1, per_device_train_batch_size=GLOBAL_BATCH // world,
        gradient_accumulation_steps=2, ddp_find_unused_parameters=False, logging_strategy="no",
    )  # fmt: skip
    net = tiny_bert(num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    net.accepts_loss_kwargs = False  # Bert's heads ignore num_items_in_batch (transformers#47688)
    watch = Watch()
    trainer = SparseTrainer(model=net, args=args, train_dataset=Toy(), srigl_config=CONFIG, callbacks=[watch])
    trainer.train()
    assert trainer.accelerator.num_processes == world
    return [watch.history[step] for step in range(5, STEPS, 5)], trainer.model.state_dict()


def worker(rank, path):
    world = dist.get_world_size() if dist.is_initialized() else 1
    outcome = {
        "plain": plain_loop(rank, world),
        "accelerate": accelerate_loop(rank, world),
        "trainer": trainer_loop(rank, world, path),
    }
    if world > 1:
        outcome["bytes"] = bytes_moved(rank)
        outcome["mismatch"] = mismatches(rank)
    return outcome


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return processes.run_once(tmp_path_factory, worker, 1)[0]


@pytest.fixture(scope="module", params=[2, 4])
def several(request, tmp_path_factory):
    return processes.run_once(tmp_path_factory, worker, request.param)


@pytest.mark.parametrize("loop", ["plain", "accelerate", "trainer"])
def test_many_ranks_equal_one_process_with_the_same_global_batch(single, several, loop):
    history, state = single[loop][:2]
    assert len(history) >= 9
    assert not all(bool(active.all()) for active in history[-1][1::2])  # ablation took part
    assert any(not torch.equal(a, b) for a, b in zip(history[0], history[-1], strict=True))
    for rank in several:
        other_history, other_state = rank[loop][:2]
        assert len(other_history) == len(history)
        for update, (ours, theirs) in enumerate(zip(other_history, history, strict=True)):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), f"update {update}"
        # The exact gradient of a key's bias is 0: what is there is rounding
        floats = {n: t for n, t in state.items() if t.is_floating_point() and not n.endswith("key.bias")}
        for name, tensor in floats.items():
            difference = (other_state[name] - tensor).norm() / tensor.norm().clamp(min=1e-12)
            assert difference < 1e-6, f"{name}: {difference}"
    for name, tensor in several[0][loop][1].items():
        assert all(torch.equal(rank[loop][1][name], tensor) for rank in several), name


def test_reports_count_the_bytes_of_an_update(single, several):
    reports = several[0]["plain"][2]
    assert [(r.reduced_bytes, r.broadcast_bytes) for r in single["plain"][2]] == [(0, 0)] * len(reports)
    dense = 4 * (20 * 24 + 24 * 16 + 16 * 5)
    assert {(r.reduced_bytes, r.broadcast_bytes) for r in reports} == {(dense, dense // 32)}  # masks as bits
    assert reports[0].metrics()["srigl/reduced_bytes"] == dense


def bytes_moved(rank):
    """What DDP's communication hook is given on an ordinary step, and every other byte given to torch.distributed."""
    net = sparsify(nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 100)), dataclasses.replace(CONFIG, update_every=2))
    wrapped = DistributedDataParallel(net)
    seen = SimpleNamespace(hook=0)

    def count(state, bucket):
        seen.hook += bucket.buffer().numel() * bucket.buffer().element_size()
        future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0] / dist.get_world_size())

    wrapped.register_comm_hook(None, count)
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    srigl = SRigL(wrapped, optimizer, total_steps=100)
    outcome = []
    for _ in range(4):
        optimizer.zero_grad()
        seen.hook = 0
        wrapped(torch.randn(4, 200)).square().mean().backward()
        optimizer.step()
        with counted() as others:
            report = srigl.step()
        outcome.append((seen.hook, dict(others), report is not None))
    condensed = sum(p.grad.numel() * p.grad.element_size() for p in net.parameters())
    weights = sum(layer.budget * 4 for layer in srigl.layers.values())
    return condensed, weights, outcome


class counted:
    """Bytes given to the collectives inside the block, by name."""

    names = ("all_reduce", "reduce", "broadcast", "all_gather")

    def __enter__(self):
        self.bytes = dict.fromkeys(self.names, 0)
        self.originals = {name: getattr(dist, name) for name in self.names}
        for name, original in self.originals.items():
            setattr(dist, name, self.counting(name, original))
        return self.bytes

    def __exit__(self, *exception):
        for name, original in self.originals.items():
            setattr(dist, name, original)

    def counting(self, name, original):
        def call(*args, **kwargs):
            tensor = args[1] if name == "all_gather" else args[0]
            self.bytes[name] += tensor.numel() * tensor.element_size()
            return original(*args, **kwargs)

        return call


def test_an_ordinary_step_moves_the_condensed_gradients_and_nothing_else(several):
    for rank in several:
        condensed, weights, steps = rank["bytes"]
        assert weights < condensed < 1.05 * weights  # 400 biases beside 27,000 weights
        assert [updated for _, _, updated in steps] == [False, True] * 2
        for hook, others, updated in steps:
            assert hook <= 1.05 * weights
            assert hook == condensed
            if not updated:
                assert sum(others.values()) == 0


def mismatches(rank):
    """One rank departs, in each way it can; the message every rank gets."""
    messages = {}

    def expect(name, act):
        try:
            act()
        except RuntimeError as error:
            messages[name] = str(error)
        dist.barrier()

    net = sparsify(model(), CONFIG)
    optimizer = optim.SGD(net.parameters(), lr=0.0)
    srigl = SRigL(net, optimizer, total_steps=10)
    state = copy.deepcopy(srigl.state_dict())
    srigl.resume_at(4)
    net(torch.randn(4, 20)).sum().backward()
    if rank == 1:
        net[2].rewire(net[2].mask().roll(1, dims=1))
    expect("update", srigl.step)
    expect("load", lambda: srigl.load_state_dict(state))
    if rank == 1:
        net[2].rewire(net[2].mask().roll(-1, dims=1))
    expect("other step", lambda: srigl.load_state_dict({**state, "steps": rank // (dist.get_world_size() - 1)}))
    expect("steps", lambda: SRigL(net, optimizer, total_steps=10 + rank))
    config = dataclasses.replace(CONFIG, gamma_sal=0.5 if rank == 1 else 0.9)
    expect("config", lambda: SRigL(net, optimizer, total_steps=10, config=config))
    other = sparsify(nn.Sequential(nn.Linear(20, 24 - rank)), CONFIG)
    expect("layers", lambda: SRigL(other, optim.SGD(other.parameters(), lr=0.0), total_steps=10))
    SRigL(net, optimizer, total_steps=10)  # and it works on
    return messages


def test_ranks_that_differ_all_stop_with_layer_and_ranks(several):
    others = ", ".join(str(rank) for rank in range(len(several)) if rank != 1)
    odd = "rank 0 against rank 1" if len(several) == 2 else f"ranks {others} against rank 1"
    for rank, messages in enumerate(item["mismatch"] for item in several):
        assert messages["update"].startswith(
            f"layer 2: expected one topology on all ranks before the update of step 5, found different ones: {odd}"
        )
        assert "when resuming at step 0" in messages["load"]
        assert "expected the same step to resume at on all ranks" in messages["other step"]
        assert "expected the same total_steps on all ranks" in messages["steps"]
        assert f"rank {rank} has {10 + rank}" in messages["steps"]
        assert f"the same SRigLConfig on all ranks, found different ones: {odd}" in messages["config"]
        assert "expected the same condensed layers on all ranks" in messages["layers"]


def test_the_fingerprint_sees_every_index_and_every_row():
    layer = sparsify(nn.Sequential(nn.Linear(40, 6)), dataclasses.replace(CONFIG, sparsity=0.9))[0]
    seen, changes = {int(fingerprint_of(layer))}, set()
    for slot, old in enumerate(layer.indices.tolist()):
        for value in {old + 1, old + 2, 39 - old, -1} - {old}:
            layer.indices[slot] = value
            seen.add(int(fingerprint_of(layer)))
            changes.add((slot, value))
        layer.indices[slot] = old
    assert len(seen) == 1 + len(changes)
    rows = set()
    for row in range(6):
        layer.active[row] = False
        rows.add(int(fingerprint_of(layer)))
        layer.active[row] = True
    assert len(rows | seen) == len(seen) + 6
    swapped = layer.indices.clone()
    layer.indices[[0, 1]] = layer.indices[[1, 0]]
    assert int(fingerprint_of(layer)) not in seen
    layer.indices.copy_(swapped)
    before = fingerprint_of(layer)
    with torch.no_grad():
        layer.weight.add_(1)
    assert fingerprint_of(layer) == before


@pytest.mark.parametrize("ranks", [2, 4])
def test_averaging_in_a_narrower_dtype_changes_choices_and_float32_does_not(ranks):
    """Why the dense gradients travel in float32: of bf16 and fp16 averages other weights grow."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(384, 512, generator=generator)
    mask = topology.magnitude_mask(weight, 51)
    parts = torch.randn(ranks, 384, 512, generator=generator) * 1e-3

    def chosen(dtype):
        total = parts[0].to(dtype)
        for part in parts[1:]:
            total = total + part.to(dtype)  # a reduction adds in the tensors' dtype
        grad = total.double() / ranks
        return topology.update_mask(weight, mask, grad, budget=384 * 51, drop_fraction=0.3, min_salient=15)

    exact = chosen(torch.float64)
    grown = exact & ~mask
    differing = {dtype: int((grown & ~chosen(dtype)).sum()) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    assert int(grown.sum()) > 5000
    assert differing[torch.float32] == 0
    assert 0 < differing[torch.float16] < differing[torch.bfloat16]
    assert differing[torch.bfloat16] > 50
