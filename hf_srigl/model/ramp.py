"""How many values every layer may hold at which step: all the same number, or falling along a ramp."""

from __future__ import annotations

from collections.abc import Mapping

from hf_srigl.config import SRigLConfig
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.rule.distribution import fan_in_per_layer
from hf_srigl.rule.schedule import ramp_end, ramp_fan_in


class Ramp:
    """The budgets of a model's layers as a function of the completed optimizer steps.

    Without ``config.ramp_until`` every layer keeps the budget it has. With it, fan-in (before ablation) falls from that of
    ``config.ramp_from`` to that of ``config.sparsity``; it never rises, so that a model further down stays there.

    Args:
        layers: all condensed layers of the model. total_steps: optimizer steps of the whole run.

    Attributes:
        end: the step that reaches the target; None without a ramp.

    Example:
        >>> layers = {"up": CondensedLinear(100, 10, budget=1000)}
        >>> ramp = Ramp(layers, SRigLConfig(sparsity=0.9, ramp_until=0.5), total_steps=40)
        >>> [ramp.budget("up", step) for step in (0, 10, 20, 30)]
        [1000, 210, 100, 100]
    """

    def __init__(self, layers: Mapping[str, CondensedLinear], config: SRigLConfig, total_steps: int) -> None:
        self.layers = layers
        self.end = None if config.ramp_until is None else ramp_end(config.ramp_until, total_steps)
        self._first = _fan_ins(layers, config, config.ramp_from)
        self._last = _fan_ins(layers, config, config.sparsity)

    def budget(self, name: str, step: int) -> int:
        """B of layer `name` right after optimizer step `step`."""
        layer = self.layers[name]
        if self.end is None:
            return layer.budget
        fan_in = ramp_fan_in(step, first=self._first[name], last=self._last[name], end=self.end)
        return min(layer.budget, layer.out_features * fan_in)

    def lowers(self, name: str, step: int) -> bool:
        """Whether a topology update right after optimizer step `step` lowers the layer's budget."""
        return self.budget(name, step) < self.layers[name].budget


def final_budgets(layers: Mapping[str, CondensedLinear], config: SRigLConfig) -> dict[str, int]:
    """The budget of every layer once there is no ramp to go on with."""
    if config.ramp_until is None:
        return {name: layer.budget for name, layer in layers.items()}
    fan_ins = _fan_ins(layers, config, config.sparsity)
    return {name: min(layer.budget, layer.out_features * fan_ins[name]) for name, layer in layers.items()}


def _fan_ins(layers: Mapping[str, CondensedLinear], config: SRigLConfig, sparsity: float) -> dict[str, int]:
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    return fan_in_per_layer(shapes, sparsity, config.distribution)
