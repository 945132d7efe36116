"""Models on a GPU: tokens per second of `generate`, memory and time of training, condensed against dense."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from gpu_timing import Sizes, forget_peak, free, peak_bytes, wall
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_srigl import SRigL, SRigLConfig, sparsify, sparsity_report
from hf_srigl.model.attachment import condensed_layers
from hf_srigl.training.memory import live_bytes

SPARSITY = 0.9


def model_of(name: str, sizes: Sizes, dtype: torch.dtype) -> nn.Module:
    """GPT-2 medium's shape, or a Llama of 1.0 billion parameters; random weights, made on the device."""
    small = sizes.shrink
    if name == "gpt2-medium":
        heads = 16 if small == 1 else 2
        width = {
            "n_embd": 1024 // small,
            "n_layer": 24 if small == 1 else 1,
            "n_head": heads,
            "vocab_size": 50257 // small,
        }
        config = GPT2Config(**width, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
        config.loss_type = "ForCausalLM"
        kind = GPT2LMHeadModel
    else:
        config = LlamaConfig(
            hidden_size=2048 // small,
            intermediate_size=5632 // small,
            num_hidden_layers=22 if small == 1 else 1,
            num_attention_heads=32 if small == 1 else 2,
            num_key_value_heads=4 if small == 1 else 1,
            vocab_size=32000 // small,
            tie_word_embeddings=True,
        )
        kind = LlamaForCausalLM
    torch.manual_seed(0)
    with torch.device(sizes.device):
        model = kind(config)
    return model.to(dtype)


def condense(model: nn.Module, sizes: Sizes) -> nn.Module:
    return sparsify(model, SRigLConfig(sparsity=SPARSITY, update_every=sizes.update_every))


def generation(sizes: Sizes, compiled: bool) -> str:
    """Greedy decoding from a prompt of 16 tokens; the first call, which compiles and tunes, is not counted."""
    lines = [
        f"Llama-shaped, bf16, {sizes.tokens} tokens, {SPARSITY:.0%}, "
        + ("static cache, compiled by generate" if compiled else "dynamic cache, eager"),
        "",
        "| batch | dense tokens/s | condensed tokens/s | ratio |",
        "|---|---|---|---|",
    ]
    speed: dict[tuple[int, str], float] = {}
    total = ""
    for kind in ("dense", "condensed"):
        model = model_of("llama-1b", sizes, sizes.dtype).eval()
        if kind == "condensed":
            with torch.no_grad():
                same_as_dense(model, sizes)
                total = str(sparsity_report(model)).splitlines()[-1]
        for batch in (1, 4):
            ids = torch.randint(0, model.config.vocab_size, (batch, 16), device=sizes.device)
            options = {"max_new_tokens": sizes.tokens, "min_new_tokens": sizes.tokens, "do_sample": False}
            if compiled:
                options["cache_implementation"] = "static"

            def call(model=model, ids=ids, options=options) -> None:
                model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)

            call()
            speed[batch, kind] = batch * sizes.tokens / wall(call, sizes, 3 if sizes.device == "cuda" else 1)
        del model
        free(sizes)
    for batch in (1, 4):
        dense, condensed = speed[batch, "dense"], speed[batch, "condensed"]
        lines.append(f"| {batch} | {dense:.1f} | {condensed:.1f} | {condensed / dense:.2f} |")
    return "\n".join([*lines, "", total])


def same_as_dense(model: nn.Module, sizes: Sizes) -> None:
    """Condense the model; each layer must compute for one row and for many what its dense matrix does.

    Raises:
        RuntimeError: a layer does not.
    """
    condense(model, sizes)
    for name, layer in condensed_layers(model).items():
        dense = layer.to_dense().float()
        for rows in (1, 40):
            x = torch.randn(rows, layer.in_features, device=sizes.device).to(sizes.dtype)
            expected = x.float() @ dense.t() + (0 if layer.bias is None else layer.bias.float())
            error = float((layer(x).float() - expected).abs().max())
            if not error <= 2e-2 * float(expected.abs().max()):
                raise RuntimeError(f"layer {name}, {rows} rows: wrong values, off by {error}")


def training(name: str, sizes: Sizes) -> str:
    """Steps with AdamW (fused), float32 parameters and bf16 autocast, as the Trainer's bf16=True does."""
    sequences, tokens = sizes.batch
    rows = {kind: _train(name, kind, sizes) for kind in ("dense", "condensed")}
    dense, condensed = rows["dense"], rows["condensed"]
    lines = [
        f"{name} shape, {sequences} x {tokens} tokens a step, AdamW, fp32 parameters under bf16 autocast, {SPARSITY:.0%}",
        "",
        "| | dense | condensed | ratio |",
        "|---|---|---|---|",
    ]
    for title, unit, divisor in (  # - is what is not there, or on the CPU not counted
        ("weights + gradients + AdamW state", "GB", 1e9),
        ("the same without embeddings, norms and heads", "GB", 1e9),
        ("peak of an ordinary step", "GB", 1e9),
        ("peak of a step that updates the topology", "GB", 1e9),
        ("ordinary step", "ms", 1e-3),
        ("step that updates all layers, update included", "ms", 1e-3),
    ):
        values = [dense.get(title), condensed.get(title)]
        cells = ["-" if value is None else f"{value / divisor:.3g} {unit}" for value in values]
        ratio = "" if None in values else f"{values[1] / values[0]:.3f}"
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join([*lines, "", condensed["report"]])


def _train(name: str, kind: str, sizes: Sizes) -> dict[str, object]:
    free(sizes)
    model = model_of(name, sizes, torch.float32).train()
    report = ""
    if kind == "condensed":
        condense(model, sizes)
        report = str(sparsity_report(model)).splitlines()[-1]
    sequences, tokens = sizes.batch
    ids = torch.randint(0, model.config.vocab_size, (sequences, tokens), device=sizes.device)
    # accelerate's optimizer, as in the Trainer: it knows the last micro-batch, after which dense gradients are pruned
    optimizer = Accelerator(cpu=sizes.device == "cpu").prepare(
        torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    )
    srigl = SRigL(model, optimizer, total_steps=1000) if kind == "condensed" else None
    live: list[int] = []

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(sizes.device, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if len(live) < 3:  # in the warm-up only, as counting takes time
            live.append(live_bytes(model, optimizer))
        optimizer.step()
        if srigl is not None:
            srigl.step()

    results: dict[str, object] = {"report": report}
    times: dict[bool, list[float]] = {False: [], True: []}
    peaks: dict[bool, list[int | None]] = {False: [], True: []}
    for number in range(1, 2 * sizes.update_every + sizes.steps + 1):
        updates = kind == "condensed" and number % sizes.update_every == 0
        forget_peak(sizes)
        seconds = wall(step, sizes, 1)
        if number > sizes.update_every:  # a whole round of warm-up
            times[updates].append(seconds)
            peaks[updates].append(peak_bytes(sizes))
    kept = _bytes_of_targets(model, optimizer, kind)
    results["weights + gradients + AdamW state"] = live[2]  # AdamW has its state, and no topology is updated
    results["the same without embeddings, norms and heads"] = kept
    results["ordinary step"] = sorted(times[False])[len(times[False]) // 2]
    results["peak of an ordinary step"] = max(filter(None, peaks[False]), default=None)
    if kind == "condensed":
        results["step that updates all layers, update included"] = sorted(times[True])[len(times[True]) // 2]
        results["peak of a step that updates the topology"] = max(filter(None, peaks[True]), default=None)
        srigl.close()
    return results


def _bytes_of_targets(model: nn.Module, optimizer: torch.optim.Optimizer, kind: str) -> int:
    """Live bytes of the layers that are condensed, or would be."""
    if kind == "condensed":
        targets = list(condensed_layers(model).values())
    else:
        names = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and "lm_head" not in n]
        targets = [model.get_submodule(n) for n in names]
    return live_bytes(nn.ModuleList(targets), optimizer)
