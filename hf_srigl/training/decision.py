"""What an update decides for one layer, given the configuration and the step: the options of `topology` filled in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from hf_srigl.config import SRigLConfig
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.model.ramp import Ramp
from hf_srigl.model.targets import may_ablate
from hf_srigl.rule import topology
from hf_srigl.rule.draws import generator_for
from hf_srigl.rule.rigl import rigl_mask
from hf_srigl.rule.schedule import drop_fraction_at, floor_count


class Rule:
    """Decides; changes nothing.

    Args:
        layers: name -> layer, all condensed layers of the model. total_steps: optimizer steps of the whole run.
        heads: names of layers that produce the model's outputs; made sparse by explicit wish, and never ablated.
    """

    def __init__(
        self, layers: Mapping[str, CondensedLinear], config: SRigLConfig, total_steps: int, heads: Collection[str] = ()
    ) -> None:
        self.layers, self.config, self.total_steps, self.heads = layers, config, total_steps, heads
        self.ramp = Ramp(layers, config, total_steps)

    def drop_fraction(self, step: int) -> float:
        """Share of the active weights that the update after `step` drops."""
        return drop_fraction_at(
            step,
            drop_fraction=self.config.drop_fraction,
            stop_updates_at=self.config.stop_updates_at,
            total_steps=self.total_steps,
        )

    def new_mask(self, name: str, step: int, weight: Tensor, grows: bool) -> Tensor:
        """The mask (N, K) of a layer after the update of `step`.

        Args:
            weight: the layer's dense weight, (N, K). grows: False only trims, for a layer that does not learn.

        Raises:
            RuntimeError: the layer grows by its dense gradient and has collected none.
        """
        layer, budget = self.layers[name], self.ramp.budget(name, step)
        mask = layer.mask()
        if budget < layer.budget:
            mask = topology.trim_mask(weight, mask, budget // int(layer.active.sum()))
        if not grows:
            return mask
        scores, drop_fraction = self._growth_scores(name, step), self.drop_fraction(step)
        if self.config.structure == "unstructured":
            return rigl_mask(weight, mask, scores, drop_fraction=drop_fraction)
        return topology.update_mask(
            weight,
            mask,
            scores,
            budget=budget,
            drop_fraction=drop_fraction,
            min_salient=self._min_salient(name, budget),
        )

    def may_prune(self, name: str, step: int) -> bool:
        """Whether `decisive` is known before the optimizer has made its step: not where weights decide what is trimmed."""
        return self.config.structure == "constant_fan_in" and not self.ramp.lowers(name, step)

    def decisive(self, name: str, step: int, gradient: Tensor) -> Tensor:
        """The flat positions of a dense gradient (N, K) that the update of `step` can depend on."""
        layer = self.layers[name]
        return topology.decisive_positions(
            layer.mask(),
            gradient,
            budget=layer.budget,
            drop_fraction=self.drop_fraction(step),
            min_salient=self._min_salient(name, layer.budget),
        )

    def _growth_scores(self, name: str, step: int) -> Tensor:
        layer = self.layers[name]
        if self.config.grow == "gradient":
            dense = layer.dense_grad.dense()
            if dense is None:
                raise RuntimeError(f"layer {name}: no dense gradient was collected at its update step")
            return dense
        generator = generator_for(self.config.seed, "grow", step, name)
        scores = torch.rand(layer.out_features, layer.in_features, generator=generator)
        return scores.to(layer.weight.device)

    def _min_salient(self, name: str, budget: int) -> int | None:
        if self.config.gamma_sal is None or name in self.heads or not may_ablate(name, self.config):
            return None
        initial_fan_in = budget // self.layers[name].out_features
        return max(1, floor_count(self.config.gamma_sal * initial_fan_in))
