"""docs/scaling.md: its formulas against counters in real processes, its table against its formulas."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import ranks as processes
import torch
import torch.distributed as dist
from test_ranks import counted
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel

import hf_srigl
from hf_srigl import SRigL, SRigLConfig, sparsify
from hf_srigl.training.memory import live_bytes

PAGE = (Path(hf_srigl.__file__).parent.parent / "docs" / "scaling.md").read_text()
LAYERS, INTERVAL = [(300, 200), (100, 300), (40, 100)], 2


def run_page():
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
            exec(block, names)
    return names["per_rank"], printed.getvalue()


def test_the_table_is_what_the_page_computes():
    (table,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    assert table == run_page()[1]


def counters(rank, path, stagger):
    config = SRigLConfig(sparsity=0.8, update_every=INTERVAL, gamma_sal=None, stop_updates_at=1.0, stagger=stagger)
    net = sparsify(nn.Sequential(*(nn.Linear(k, n) for n, k in LAYERS)), config)
    world = dist.get_world_size() if dist.is_initialized() else 1
    wrapped = DistributedDataParallel(net) if world > 1 else net
    buckets = []
    if world > 1:
        wrapped.register_comm_hook(buckets, count_bucket)
    optimizer = optim.AdamW(net.parameters())
    srigl = SRigL(wrapped, optimizer, total_steps=10)
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        buckets.clear()
        wrapped(torch.randn(8, 200)).square().mean().backward()
        optimizer.step()
        held = live_bytes(net, optimizer) - 4 * len(list(net.parameters()))  # AdamW's step counts
        with counted() as bytes_given:
            report = srigl.step()
        seen.append((held, sum(buckets), dict(bytes_given), report))
    tried = sum(explored.bits.numel() for explored in srigl._explored.values())
    return seen, tried


def count_bucket(buckets, bucket):
    buckets.append(bucket.buffer().numel() * bucket.buffer().element_size())
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0] / dist.get_world_size())


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_formulas_are_what_counters_count(tmp_path, world):
    formula = run_page()[0](LAYERS, sum(n for n, _ in LAYERS), 0.8, world, INTERVAL)
    for seen, tried in processes.run(counters, world, tmp_path, False):
        assert tried == formula["held: positions ever tried"]
        for step, (held, gradients, given, report) in enumerate(seen, start=1):
            updated = step % INTERVAL == 0
            assert (report is not None) == updated
            always = formula["held: weights, gradients, moments"] + formula["held: indices and active rows"]
            assert held == always + updated * formula["held at an update: dense gradients"]
            assert gradients == (formula["step: all-reduce of gradients"] if world > 1 else 0)
            assert given["reduce"] == updated * formula["update: reduce of dense gradients"]
            assert given["broadcast"] == updated * formula["update: broadcast of masks as bits"]
            assert given["all_gather"] + given["all_reduce"] == updated * formula["update: flags and fingerprints"]
            if updated:
                assert (report.reduced_bytes, report.broadcast_bytes) == (given["reduce"], given["broadcast"])


def test_staggered_updates_hold_no_more_than_the_formula_says(tmp_path):
    formula = run_page()[0](LAYERS, sum(n for n, _ in LAYERS), 0.8, 2, INTERVAL)
    always = formula["held: weights, gradients, moments"] + formula["held: indices and active rows"]
    for seen, _ in processes.run(counters, 2, tmp_path, True):
        extra = [held - always for held, _, _, _ in seen]
        assert max(extra) > 0
        assert all(more <= formula["held at an update, stagger=True"] for more in extra)
        assert formula["held at an update, stagger=True"] < 2 * formula["held at an update: dense gradients"]
