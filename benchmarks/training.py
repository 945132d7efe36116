"""Live bytes of training, size of a checkpoint and time of one topology update, beside dense, in one run.

    python benchmarks/training.py

Writes benchmarks/results/training.md. Bytes are exact; the time is the median of alternating repetitions.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from common import batch, bert_stack, write
from torch import nn, optim

from hf_srigl import CondensedLinear, SRigL, SRigLConfig, sparsify, sparsity_report
from hf_srigl.rule import topology
from hf_srigl.training.memory import live_bytes

CONFIG = SRigLConfig(sparsity=0.9, update_every=3)


def dense_bytes() -> tuple[int, int]:
    """(live bytes after a step, bytes of the saved file) of the dense stack."""
    model = bert_stack()
    optimizer = optim.AdamW(model.parameters())
    model(**batch()).loss.backward()
    optimizer.step()
    return live_bytes(model, optimizer), file_bytes(model)


def condensed_bytes(config: SRigLConfig) -> tuple[int, int, int, str]:
    """(between updates, most at an update, saved file, totals line) of the condensed stack.

    Live bytes are looked at when every gradient is there: after the backward pass of an ordinary step, and of the update
    step, where also the most that exists at any moment of the backward pass is recorded.
    """
    model = sparsify(bert_stack(), config)
    optimizer = Accelerator(cpu=True).prepare(optim.AdamW(model.parameters()))  # as the Trainer does
    srigl = SRigL(model, optimizer, total_steps=100)
    between = at_update = 0
    for step in range(1, 5):
        optimizer.zero_grad()
        watch = [live_bytes(model, optimizer)]
        hooks = [
            layer.register_full_backward_pre_hook(lambda *_, watch=watch: watch.append(live_bytes(model, optimizer)))
            for layer in srigl.layers.values()
        ]
        model(**batch()).loss.backward()
        for hook in hooks:
            hook.remove()
        optimizer.step()
        most = max([*watch, live_bytes(model, optimizer)])
        # while one layer's gradient is pruned, that one is there whole
        largest = max(layer.out_features * layer.in_features for layer in srigl.layers.values()) * 4
        report = srigl.step()
        if report is not None:
            at_update = most + largest
        elif step == 2:
            between = most
    return between, at_update, file_bytes(model), str(sparsity_report(model)).splitlines()[-1]


def file_bytes(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def update_milliseconds(gammas: tuple[float | None, ...], repetitions: int = 15) -> dict[float | None, float]:
    """Median time of one whole update of a 3072 x 768 layer with AdamW state (decision and moving everything)."""
    torch.set_num_threads(1)
    times: dict[float | None, list[float]] = {gamma: [] for gamma in gammas}
    for _ in range(repetitions):
        for gamma in gammas:
            weight = torch.randn(3072, 768)
            layer = CondensedLinear.from_dense(weight, topology.magnitude_mask(weight, 77))
            model = nn.Sequential(layer)
            optimizer = optim.AdamW(model.parameters())
            config = SRigLConfig(update_every=1, gamma_sal=gamma, stop_updates_at=1.0)
            srigl = SRigL(model, optimizer, total_steps=100, config=config)
            layer(torch.randn(64, 768)).square().sum().backward()
            optimizer.step()
            start = time.perf_counter()
            srigl.step()
            times[gamma].append(time.perf_counter() - start)
    return {gamma: 1000 * statistics.median(values) for gamma, values in times.items()}


def main() -> None:
    dense, dense_file = dense_bytes()
    rows = []
    for name, config in (
        ("gamma_sal 0.3 (default)", CONFIG),
        ("no ablation", SRigLConfig(sparsity=0.9, update_every=3, gamma_sal=None)),
        ("gamma_sal 0.95", SRigLConfig(sparsity=0.9, update_every=3, gamma_sal=0.95)),
    ):
        between, at_update, size, totals = condensed_bytes(config)
        rows.append(f"| {name} | {between / dense:.3f} | {at_update / dense:.3f} | {size / dense_file:.3f} |")
    milliseconds = update_milliseconds((None, 0.3, 0.95))
    text = "\n".join(
        [
            "2-layer BERT stack (hidden 768, ffn 3072, vocab 1000) at 90 %, AdamW, fp32, one process; dense = 1",
            f"(dense: {dense / 1e6:.1f} MB live, {dense_file / 1e6:.1f} MB on disk). Live bytes: parameters, gradients,",
            "AdamW state, buffers and collected dense gradients, not activations; the most at any moment of the step.",
            "",
            "| | live bytes between updates | live bytes at an update | checkpoint |",
            "|---|---|---|---|",
            *rows,
            "",
            totals,
            "",
            "One update of a 3072 x 768 layer at 90 % with its AdamW state, 1 thread, median:",
            "",
            "| gamma_sal | ms |",
            "|---|---|",
            *[f"| {gamma} | {ms:.0f} |" for gamma, ms in milliseconds.items()],
        ]
    )
    write("training", text)


if __name__ == "__main__":
    main()
