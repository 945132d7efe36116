"""SRigL: the only object that changes a topology. Two lines in a training loop."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn, optim

from hf_srigl import sharding, topology
from hf_srigl.config import SRigLConfig
from hf_srigl.exploration import Explored
from hf_srigl.linear import CondensedLinear
from hf_srigl.optimizers import check_optimizer, fit_state, movable_state, unwrap
from hf_srigl.ramp import Ramp
from hf_srigl.rigl import rigl_mask
from hf_srigl.schedule import drop_fraction_at, floor_count, is_update_step, stagger_offsets, update_interval
from hf_srigl.surgery import condensed_layers, config_of, generator_for, refresh_budgets
from hf_srigl.targets import may_ablate
from hf_srigl.updates import LayerUpdate, UpdateReport

logger = logging.getLogger(__name__)

FEW_UPDATES = 10


class SRigL:
    """Runs the topology updates of a condensed model in any training loop.

    Call `step` right after every ``optimizer.step()`` and before gradients are zeroed. The step that updates a layer is
    known in advance, so the layer collects its dense gradient during exactly that step's backward passes (summed over
    micro-batches). Layers that are frozen keep their topology. With several ranks (`torch.distributed` initialised)
    gradients are averaged over them and rank 0's topology is everybody's, from the construction of this object on.

    Args:
        model: made by `hf_srigl.sparsify` or loaded condensed; wrapped (DDP, `torch.compile`) or not.
        optimizer: created after sparsifying; accelerate's wrapper is looked through.
        total_steps: optimizer steps of the whole run, >= 1; the schedule is relative to it.
        config: default: the one the model carries. Only its training options matter here (`update_every`,
            `drop_fraction`, `stop_updates_at`, `gamma_sal`, `never_ablate`, `grow`, `stagger`, `seed`).

    Raises:
        ValueError: the model has no condensed layer or no configuration, parameters are sharded, the optimizer cannot
            be used (`hf_srigl.optimizers.check_optimizer`), or `total_steps` is not positive.

    Example:
        >>> from hf_srigl import SRigL, SRigLConfig, sparsify
        >>> model = sparsify(nn.Sequential(nn.Linear(64, 32)), SRigLConfig(sparsity=0.75, update_every=2))
        >>> optimizer = optim.AdamW(model.parameters())
        >>> srigl = SRigL(model, optimizer, total_steps=10)
        >>> reports = []
        >>> for step in range(4):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 64)).square().sum().backward()
        ...     optimizer.step()
        ...     reports.append(srigl.step())
        >>> [report is not None for report in reports]
        [False, True, False, True]
    """

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, *, total_steps: int, config: SRigLConfig | None = None
    ) -> None:
        # Names must not depend on a wrapper: random growth and never_ablate go by them
        model = extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False)
        layers = condensed_layers(model)
        if not layers:
            raise ValueError("the model has no condensed layer: call sparsify(model, SRigLConfig(...)) first")
        config = config_of(model) if config is None else config
        if config is None:
            raise ValueError("the model carries no SRigLConfig: pass config=SRigLConfig(...)")
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(f"total_steps must be a positive whole number of optimizer steps, got {total_steps!r}")
        sharding.check_whole(layers)
        self.config, self.total_steps = config, total_steps
        self.optimizer = unwrap(optimizer)
        # accelerate's optimizer knows which micro-batch is the last of its step
        self._accumulation = optimizer.gradient_state if isinstance(optimizer, AcceleratedOptimizer) else None
        self.layers = layers
        self.trained = {name: layer for name, layer in layers.items() if layer.weight.requires_grad}
        check_optimizer(self.optimizer, {name: layer.weight for name, layer in self.trained.items()})
        self.steps = 0
        self._interval = update_interval(config.update_every, total_steps)
        self._offsets = dict.fromkeys(layers, 0)
        if config.stagger and self._interval is not None:
            self._offsets |= dict(zip(self.trained, stagger_offsets(len(self.trained), self._interval), strict=True))
        self._model, self._ramp = model, Ramp(layers, config, total_steps)
        self._warn_of_few_updates()
        for layer in layers.values():
            sharding.broadcast_topology(layer)
        self._explored = {name: Explored.of(layer.mask()) for name, layer in layers.items()}
        self._postponed: list[str] = []
        for name, layer in self.trained.items():
            layer.dense_grad.watch(layer.weight, functools.partial(self._gradient_arrives, name))
        self._arm()

    def step(self) -> UpdateReport | None:
        """Count one optimizer step and, if it is an update step, change the topology of the layers that are due.

        Weights, their gradients and the optimizer's state are moved in place. If a gradient or weight is NaN or inf on
        any rank (an fp16 overflow, say), nothing is changed and the update is postponed to the next step. Inside
        accelerate's ``accumulate`` a call for any micro-batch but the last does nothing, as ``optimizer.step()`` then.

        Returns:
            What was changed, or None on ordinary and on postponed steps.

        Raises:
            ValueError: the optimizer holds state that cannot follow a topology; nothing has changed then.
        """
        if self._accumulation is not None and not self._accumulation.sync_gradients:
            return None
        self.steps += 1
        due = self._due(self.steps)
        report = self._update(due) if due else None
        self._arm()
        return report

    def close(self) -> None:
        """Stop collecting dense gradients; the model can be used on without this object.

        With several processes, slots that a ramp has freed are given back only now; wrap the model anew to train on.
        """
        for layer in self.layers.values():
            self._resize(layer, layer.budget)
            layer.dense_grad.stop()
            layer.dense_grad.watch(layer.weight, None)

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs beyond the model and the optimizer: the step, postponed updates, positions tried."""
        return {
            "steps": self.steps,
            "postponed": list(self._postponed),
            "explored": {name: explored.bits.clone() for name, explored in self._explored.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; load model and optimizer first.

        Raises:
            ValueError: the state is of a model with other condensed layers.
        """
        if set(state["explored"]) != set(self._explored):
            odd = sorted(set(state["explored"]) ^ set(self._explored))
            raise ValueError(f"the SRigL state is of another model: condensed layers differ in {', '.join(odd[:5])}")
        for name, bits in state["explored"].items():
            try:
                self._explored[name].load(bits)
            except ValueError as error:
                raise ValueError(f"the SRigL state is of another model: layer {name}: {error}") from error
        self.resume_at(state["steps"], state["postponed"])

    def resume_at(self, steps: int, postponed: list[str] | None = None) -> None:
        """Continue after `steps` completed optimizer steps, with what is active now as all that was ever tried."""
        self.steps = steps
        self._postponed = list(postponed or [])
        for layer in self.layers.values() if self._ramp.end is not None else ():
            fit_state(self.optimizer, layer.weight)  # as several processes on a ramp have saved it
        self._arm()

    def _warn_of_few_updates(self) -> None:
        if self._interval is None:
            return
        updates = math.ceil(round(self.config.stop_updates_at * self.total_steps, 9) / self._interval) - 1
        if updates < FEW_UPDATES:
            logger.warning(
                "update_every=%s leaves %d topology updates in %d steps, too few to find a good topology; a share of the "
                "steps such as update_every=0.04 gives %d",
                self.config.update_every,
                max(0, updates),
                self.total_steps,
                math.ceil(self.config.stop_updates_at / 0.04) - 1,
            )

    def _due(self, step: int) -> list[str]:
        """Names of the layers whose topology changes right after optimizer step `step`.

        A ramp takes all layers along: those that are frozen are trimmed, so that they too become sparse.
        """

        def is_due(name: str) -> bool:
            return (
                name in self._postponed
                or (step == self._ramp.end)
                or is_update_step(
                    step,
                    interval=self._interval,
                    stop_updates_at=self.config.stop_updates_at,
                    total_steps=self.total_steps,
                    offset=self._offsets[name],
                )
            )

        return [n for n in self.layers if (self._learns(n) or self._ramp.lowers(n, step)) and is_due(n)]

    def _learns(self, name: str) -> bool:
        return name in self.trained and self.layers[name].weight.requires_grad

    def _arm(self) -> None:
        """Let the layers that are due at the next step collect their dense gradient in its backward passes."""
        due = self._due(self.steps + 1) if self.config.grow == "gradient" else []
        for name, layer in self.layers.items():
            if name in due:
                layer.dense_grad.start()
            else:
                layer.dense_grad.stop()

    def _gradient_arrives(self, name: str, gradient: Tensor) -> None:
        """Called when a backward pass has the whole gradient of a layer's weight, just before it is accumulated.

        If this is known to be the last pass of the step, the dense gradient is pruned at once. With several ranks the
        others' parts must be added first, so it stays whole; on a ramp the weights decide first what is trimmed.
        """
        layer = self.layers[name]
        if not layer.dense_grad.wanted:
            return
        layer.dense_grad.commit(afresh=layer.weight.grad is None)
        is_last = self._accumulation is not None and self._accumulation.sync_gradients
        constant = self.config.structure == "constant_fan_in"
        if is_last and constant and sharding.world_size() == 1 and not self._ramp.lowers(name, self.steps + 1):
            layer.dense_grad.prune(functools.partial(self._decisive, name))

    def _decisive(self, name: str, gradient: Tensor) -> Tensor:
        """What of a dense gradient the update after the step in progress can depend on."""
        layer = self.layers[name]
        return topology.decisive_positions(
            layer.mask(),
            gradient,
            budget=layer.budget,
            drop_fraction=self._drop_fraction(self.steps + 1),
            min_salient=self._min_salient(name, layer.budget),
        )

    def _drop_fraction(self, step: int) -> float:
        return drop_fraction_at(
            step,
            drop_fraction=self.config.drop_fraction,
            stop_updates_at=self.config.stop_updates_at,
            total_steps=self.total_steps,
        )

    def _update(self, due: list[str]) -> UpdateReport | None:
        state = {name: movable_state(self.optimizer, name, self.layers[name].weight) for name in due}
        growing = self._reduce_gradients(due) if self.config.grow == "gradient" else [n for n in due if self._learns(n)]
        due = [name for name in due if name in growing or self._ramp.lowers(name, self.steps)]
        again = bool(self._postponed)
        self._postponed = [] if self._all_sound(due) else due
        if self._postponed and again:
            logger.warning(
                "step %d: the topology update is postponed again, since gradients or weights of some layer are NaN or inf",
                self.steps,
            )
        if self._postponed or not due:
            return None
        drop_fraction = self._drop_fraction(self.steps)
        rows = [self._update_layer(name, drop_fraction, state[name], name in growing) for name in due]
        if self._ramp.end is not None:
            refresh_budgets(self._model)
        return self._report(drop_fraction, rows)

    def _reduce_gradients(self, due: list[str]) -> list[str]:
        """Average the dense gradients over ranks; returns the layers that took part in a backward pass anywhere."""
        gradients = {name: self.layers[name].dense_grad for name in due}
        device = self.layers[due[0]].weight.device
        flags = [gradient.seen for gradient in gradients.values()]
        seen = sharding.any_rank(torch.tensor(flags, device=device))
        used = [name for name, was_seen in zip(due, seen.tolist(), strict=True) if was_seen]
        for name in used if sharding.world_size() > 1 else []:
            layer, gradient = self.layers[name], gradients[name]
            if gradient.value is None:  # this rank's batches did not reach the layer, another rank's did
                shape = (layer.out_features, layer.in_features)
                dtype = torch.promote_types(layer.weight.dtype, torch.float32)
                gradient.value = torch.zeros(shape, dtype=dtype, device=layer.weight.device)
            sharding.mean_over_ranks(gradient.value)
        return used

    def _all_sound(self, due: list[str]) -> bool:
        """Whether all that the update depends on is finite and complete: one decision for all layers and ranks."""
        device = self.layers[next(iter(self.layers))].weight.device
        bad = torch.zeros(1, dtype=torch.bool, device=device)
        for name in due:
            layer = self.layers[name]
            for finite in (torch.isfinite(layer.weight.detach().abs().max()), layer.dense_grad.is_finite()):
                bad |= ~finite.to(device)
        return not bool(sharding.any_rank(bad).any())

    def _update_layer(self, name: str, drop_fraction: float, state: list[Tensor], grows: bool) -> LayerUpdate:
        layer = self.layers[name]
        weight, new, budget = layer.to_dense(), layer.mask(), self._ramp.budget(name, self.steps)
        if budget < layer.budget:
            new = topology.trim_mask(weight, new, budget // int(layer.active.sum()))
        if grows and self.config.structure == "unstructured":
            new = rigl_mask(weight, new, self._growth_scores(name, layer), drop_fraction=drop_fraction)
        elif grows:
            new = topology.update_mask(
                weight,
                new,
                self._growth_scores(name, layer),
                budget=budget,
                drop_fraction=drop_fraction,
                min_salient=self._min_salient(name, budget),
            )
        layer.dense_grad.stop()  # its memory goes before the next layer's turn
        sharding.broadcast_mask(new)
        used = int((layer.indices >= 0).sum())
        grown = layer.rewire(new, state)
        layer.budget = budget
        if sharding.world_size() == 1:  # elsewhere DDP has laid out its buckets for the sizes there were
            self._resize(layer, budget)
        self._explored[name].add(grown)
        n_active = int(layer.active.sum())
        used_now = int((layer.indices >= 0).sum())
        return LayerUpdate(
            name=name,
            dropped=used - (used_now - grown.numel()),
            grown=grown.numel(),
            fan_in=used_now // n_active,
            active=n_active,
            neurons=layer.out_features,
            itop=self._explored[name].rate,
        )

    def _resize(self, layer: CondensedLinear, budget: int) -> None:
        layer.resize(budget)
        fit_state(self.optimizer, layer.weight)

    def _growth_scores(self, name: str, layer: CondensedLinear) -> Tensor:
        if self.config.grow == "gradient":
            dense = layer.dense_grad.dense()
            if dense is None:
                raise RuntimeError(f"layer {name}: no dense gradient was collected at its update step")
            return dense
        generator = generator_for(self.config.seed, "grow", self.steps, name)
        scores = torch.rand(layer.out_features, layer.in_features, generator=generator)
        return scores.to(layer.weight.device)

    def _min_salient(self, name: str, budget: int) -> int | None:
        if self.config.gamma_sal is None or not may_ablate(name, self.config):
            return None
        initial_fan_in = budget // self.layers[name].out_features
        return max(1, floor_count(self.config.gamma_sal * initial_fan_in))

    def _report(self, drop_fraction: float, rows: list[LayerUpdate]) -> UpdateReport:
        layers = self.layers.values()
        positions = sum(layer.out_features * layer.in_features for layer in layers)
        used = sum(int((layer.indices >= 0).sum()) for layer in layers)
        neurons = sum(layer.out_features for layer in layers)
        return UpdateReport(
            step=self.steps,
            drop_fraction=drop_fraction,
            layers=tuple(rows),
            sparsity=1 - used / positions,
            active_neurons=sum(int(layer.active.sum()) for layer in layers) / neurons,
            itop=sum(explored.count for explored in self._explored.values()) / positions,
        )
