"""Forwards of whole architectures with random weights, for `hf-srigl bench`: BERT-base, ViT-B/16, a GPT-2 decode step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedModel, ViTConfig, ViTModel

from hf_srigl.bench.layers import CONDENSED, CONDENSED16, DENSE, DENSE16, Cell, Progress, int8
from hf_srigl.bench.measure import Call, alternate, clock_for
from hf_srigl.config import SRigLConfig
from hf_srigl.model.surgery import sparsify

CONTEXT = 128  # tokens in the cache before the decode step

# A model, and how to call it: input tensors and one call of the model in a given dtype
Case = tuple[Callable[[], PreTrainedModel], Callable[[PreTrainedModel], Call]]


def _bert(batch: int) -> Case:
    ids = torch.randint(0, 30000, (batch, 128), generator=torch.Generator().manual_seed(0))
    return lambda: BertModel(BertConfig()), lambda model: functools.partial(model, ids)


def _vit() -> Case:
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return lambda: ViTModel(ViTConfig()), lambda model: functools.partial(model, pixels.to(_dtype(model)))


def _gpt2() -> Case:
    """One new token after CONTEXT cached ones, output head included (it stays dense)."""
    ids = torch.randint(0, 50000, (1, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    return lambda: GPT2LMHeadModel(GPT2Config()), lambda model: _decoding(model, ids)


def _decoding(model: PreTrainedModel, ids: Tensor) -> Call:
    cache = model(ids[:, :CONTEXT], use_cache=True).past_key_values

    def step() -> None:
        model(ids[:, CONTEXT:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def _dtype(model: torch.nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


MODELS: dict[str, Callable[[], Case]] = {
    "BERT-base 1 x 128": lambda: _bert(1),
    "BERT-base 8 x 128": lambda: _bert(8),
    "ViT-B/16 1 image": _vit,
    "GPT-2 decode step, 128 cached": _gpt2,
}


def variants(dense: PreTrainedModel, sparsity: float) -> dict[str, PreTrainedModel]:
    """The dense model in fp32, bf16 and (where torch can) int8, and the condensed one in fp32 and bf16; all in eval mode."""
    condensed = sparsify(copy.deepcopy(dense), SRigLConfig(sparsity=sparsity))
    found = {
        DENSE: dense,
        DENSE16: copy.deepcopy(dense).bfloat16(),
        CONDENSED: condensed,
        CONDENSED16: copy.deepcopy(condensed).to(torch.bfloat16),
    }
    if any(isinstance(module, torch.nn.Linear) for name, module in dense.named_modules() if name != "lm_head"):
        quantized = int8(copy.deepcopy(dense))  # transformers' Conv1D (GPT-2) has no quantized form
        if quantized is not None:
            found["int8"] = quantized
    return {name: model.eval() for name, model in found.items()}


def bench_models(
    names: Sequence[str],
    sparsities: Sequence[float],
    threads: Sequence[int],
    *,
    seconds: float,
    progress: Progress = lambda _: None,
) -> list[Cell]:
    """Forwards of the models named (keys of `MODELS`), every contestant in turns. Leaves torch's threads as they were."""
    before, cells = torch.get_num_threads(), []
    try:
        for name in names:
            make, calling = MODELS[name]()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                dense = make()
            for sparsity in sparsities:
                models = variants(dense, sparsity)
                for count in threads:
                    progress(f"{name}, {sparsity:.0%}, {count} thread(s)")
                    torch.set_num_threads(count)
                    with torch.inference_mode():
                        running = {key: calling(model) for key, model in models.items()}
                        times = alternate(running, seconds, at_least=3, clock=clock_for(count))
                    cells.append(Cell(name, sparsity, count, 0, 0, 0, times, {}))
    finally:
        torch.set_num_threads(before)
    return cells
