"""Departures from what the library does, to see what they cost: `run.py --variant NAME`. Nobody should train with these.

Each is a context manager around the training of one `SparseTrainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, optim
from transformers import TrainerCallback

from hf_srigl import SparseTrainer
from hf_srigl.model import targets
from hf_srigl.model.attachment import condensed_layers
from hf_srigl.rule import topology
from hf_srigl.training import decision as rule

MICRO_BATCHES = 8
WARM_UP = 50  # steps


def parts_of_a_batch(variant: str | None) -> int:
    """Micro-batches of one optimizer step."""
    return MICRO_BATCHES if variant in ("micro-batches", "last-micro-batch") else 1


@contextmanager
def qkv_ablatable(trainer: SparseTrainer) -> Iterator[None]:
    """Queries, keys and values lose neurons like any other layer."""

    def may_ablate(name: str, config: Any) -> bool:
        return config.gamma_sal is not None and not targets.matches(name, config.never_ablate)

    with mock.patch.object(rule, "may_ablate", may_ablate):
        yield


@contextmanager
def micro_batches(trainer: SparseTrainer) -> Iterator[None]:
    """Nothing but the parts that `parts_of_a_batch` asks for: the dense gradient is the mean over all of them."""
    yield


@contextmanager
def last_micro_batch(trainer: SparseTrainer) -> Iterator[None]:
    """Weights learn from all parts of a batch, topologies from the last alone."""

    class Forget(TrainerCallback):
        def on_substep_end(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
            for layer in condensed_layers(model).values():
                if layer.dense_grad.wanted:
                    layer.dense_grad.start()

    trainer.add_callback(Forget())
    yield


def initial_values(standard_deviation: Callable[[int], float]) -> Callable[[SparseTrainer], Any]:
    """Fresh normal values, of a standard deviation that depends on the number of inputs, not on the fan-in."""

    @contextmanager
    def around(trainer: SparseTrainer) -> Iterator[None]:
        generator = torch.Generator().manual_seed(trainer.args.seed)
        for layer in condensed_layers(trainer.model).values():
            values = torch.randn(layer.weight.shape, generator=generator) * standard_deviation(layer.in_features)
            with torch.no_grad():
                layer.weight.copy_(values)
        yield

    return around


class _Young:
    """Counts, in the optimizer's own state, the steps since each weight was grown; subclasses treat the young ones."""

    def __init__(self, trainer: SparseTrainer) -> None:
        self.weights = [layer.weight for layer in condensed_layers(trainer.model).values()]

    def before(self, state: dict[str, Any], weight: Tensor) -> None:
        """Called before the optimizer's step; ``state["age"]`` is 0 for what was grown since the last one."""

    def after(self, state: dict[str, Any], weight: Tensor) -> None:
        """Called after it."""

    def attach(self, optimizer: optim.Optimizer) -> None:
        def pre(*_: Any) -> None:
            for weight in self.weights:
                if "age" in optimizer.state[weight]:
                    self.before(optimizer.state[weight], weight)

        @torch.no_grad()
        def post(*_: Any) -> None:
            for weight in self.weights:
                state = optimizer.state[weight]
                if "age" in state:
                    self.after(state, weight)
                    state["age"] += 1
                else:  # the first topology was not grown
                    state["age"] = torch.full_like(weight, torch.inf)

        optimizer.register_step_pre_hook(pre)
        optimizer.register_step_post_hook(post)


class _SquaredGradient(_Young):
    """The second moment of a grown weight starts as the square of its first gradient, not as zero."""

    def before(self, state: dict[str, Any], weight: Tensor) -> None:
        state["exp_avg_sq"] = torch.where(state["age"] == 0, weight.grad.square(), state["exp_avg_sq"])


class _WarmUp(_Young):
    """A grown weight takes steps that grow linearly to full size."""

    def before(self, state: dict[str, Any], weight: Tensor) -> None:
        state["before"] = weight.detach().clone()

    def after(self, state: dict[str, Any], weight: Tensor) -> None:
        share = ((state["age"] + 1) / WARM_UP).clamp(max=1)
        weight.copy_(torch.lerp(state.pop("before"), weight, share))


@contextmanager
def wanda_scores(trainer: SparseTrainer) -> Iterator[None]:
    """Weights are dropped and trimmed by ``|w| * norm of the input``, as Wanda prunes (arXiv 2306.11695), not by ``|w|``."""
    squares: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                here = inputs[0].detach().float().flatten(0, -2).square().mean(0)
                squares[name] = here if name not in squares else torch.lerp(squares[name], here, 0.1)

        return add

    decide = rule.Rule.new_mask

    def new_mask(self: rule.Rule, name: str, step: int, weight: Tensor, grows: bool) -> Tensor:
        return decide(self, name, step, weight * squares[name].sqrt(), grows)

    layers = condensed_layers(trainer.model)
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with mock.patch.object(rule.Rule, "new_mask", new_mask):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _give_optimizer(trainer: SparseTrainer, use: Callable[[optim.Optimizer], None]) -> None:
    """Calls `use` with the optimizer as soon as there is one."""

    class Begin(TrainerCallback):
        def on_train_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
            use(getattr(optimizer, "optimizer", optimizer))

    trainer.add_callback(Begin())


@contextmanager
def gradient_scores(trainer: SparseTrainer) -> Iterator[None]:
    """Weights are dropped and trimmed by ``|w| * sqrt(v)``, v AdamW's second moment, not by ``|w|``.

    The square of that is what Optimal Brain Damage takes for the loss of dropping w, with the squared gradient for a Hessian.
    """
    layers = condensed_layers(trainer.model)
    optimizers: list[optim.Optimizer] = []

    decide = rule.Rule.new_mask

    def new_mask(self: rule.Rule, name: str, step: int, weight: Tensor, grows: bool) -> Tensor:
        layer = layers[name]
        deviation = optimizers[0].state[layer.weight]["exp_avg_sq"].sqrt()
        scale = topology.scatter(deviation, layer.indices, layer.active, layer.in_features)
        return decide(self, name, step, weight * scale, grows)

    _give_optimizer(trainer, optimizers.append)
    with mock.patch.object(rule.Rule, "new_mask", new_mask):
        yield


def moments(kind: type[_Young]) -> Callable[[SparseTrainer], Any]:
    """What AdamW knows of a weight that was just grown."""

    @contextmanager
    def around(trainer: SparseTrainer) -> Iterator[None]:
        _give_optimizer(trainer, lambda optimizer: kind(trainer).attach(optimizer))
        yield

    return around


VARIANTS: dict[str, Callable[[SparseTrainer], AbstractContextManager[None]]] = {
    "qkv-ablatable": qkv_ablatable,
    "micro-batches": micro_batches,
    "last-micro-batch": last_micro_batch,
    "wanda-scores": wanda_scores,
    "gradient-scores": gradient_scores,
    "init-0.02": initial_values(lambda _: 0.02),
    "init-as-dense": initial_values(lambda inputs: (3 * inputs) ** -0.5),  # that of nn.Linear's uniform values
    "moments-squared-gradient": moments(_SquaredGradient),
    "moments-warm-up": moments(_WarmUp),
}
