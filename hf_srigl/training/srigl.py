"""SRigL: the only object that changes a topology. Two lines in a training loop."""

from __future__ import annotations

import functools
import logging
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn, optim

from hf_srigl.config import SRigLConfig
from hf_srigl.layers import shards
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.model.attachment import condensed_layers, config_of, refresh_budgets
from hf_srigl.processes import world_size
from hf_srigl.rule.schedule import is_update_step, stagger_offsets, update_interval, update_steps
from hf_srigl.rule.updates import LayerUpdate, UpdateReport
from hf_srigl.training import fingerprint, sharding
from hf_srigl.training.decision import Rule
from hf_srigl.training.exploration import Explored
from hf_srigl.training.gradients import all_sound, average
from hf_srigl.training.optimizers import check_optimizer, fit_state, movable_state, unwrap
from hf_srigl.training.plan import describe, too_few

logger = logging.getLogger(__name__)


class SRigL:
    """Runs the topology updates of a condensed model in any training loop.

    Call `step` right after every ``optimizer.step()`` and before gradients are zeroed. The step that updates a layer is
    known in advance, so the layer collects its dense gradient during exactly that step's backward passes (summed over
    micro-batches). Layers that are frozen keep their topology. With several ranks (`torch.distributed` initialised)
    gradients are averaged over them and rank 0's topology is everybody's, from the construction of this object on; each
    layer's update is decided by one rank for all, and the ranks compare topologies before and after every update.

    Args:
        model: made by `hf_srigl.sparsify` or loaded condensed; wrapped (DDP, `torch.compile`) or not.
        optimizer: created after sparsifying; accelerate's wrapper is looked through.
        total_steps: optimizer steps of the whole run, >= 1; the schedule is relative to it.
        config: default: the one the model carries. Only its training options matter here (`update_every`,
            `drop_fraction`, `stop_updates_at`, `gamma_sal`, `never_ablate`, `grow`, `stagger`, `seed`).

    Raises:
        ValueError: the model has no condensed layer or no configuration, parameters are sharded, the optimizer cannot
            be used (`hf_srigl.training.optimizers.check_optimizer`), `total_steps` is not positive, or the way of launching or
            wrapping cannot work (`hf_srigl.training.sharding.check_launch`).
        RuntimeError: ranks were given different layers, configurations or numbers of steps, on all of them; `step` and
            `load_state_dict` raise it if their topologies differ.

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
        sharding.check_launch(model)
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
        sharding.check_shards(model, layers, config)
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
        self._model, self._rule = model, Rule(layers, config, total_steps)
        self._slots = {name: layer.weight.numel() for name, layer in layers.items()}
        if self._rule.ramp.end is not None:
            refresh_budgets(model)  # refuses now what it would refuse in the middle of an update
        if self._interval is not None:
            few = too_few(config.update_every, config.stop_updates_at, total_steps, self._interval)
            if few:
                logger.warning(few)
        self._device = next(iter(layers.values())).weight.device
        self._places = {name: place for place, name in enumerate(layers)}
        facts = {"trainable layers": list(self.trained), "total_steps": total_steps, "SRigLConfig": config}
        fingerprint.check_facts({"condensed layers": fingerprint.sizes(layers), **facts}, self._device)
        for layer in layers.values():
            sharding.broadcast_topology(layer)
        fingerprint.check_topologies(layers, "at the start")
        self._explored = {name: Explored.of(layer.mask()) for name, layer in layers.items()}
        self._postponed: list[str] = []
        for name, layer in self.trained.items():
            if shards.is_sharded(layer.weight):  # FSDP2 hands gradients over without autograd: no hook is called
                layer.dense_grad.count_every_pass()
            else:
                layer.dense_grad.watch(layer.weight, functools.partial(self._gradient_arrives, name))
        self._arm()

    def __repr__(self) -> str:
        """The plan of the training, in one line.

        Example:
            >>> model = sparsify(nn.Sequential(nn.Linear(64, 32)), SRigLConfig(sparsity=0.75, update_every=25))
            >>> SRigL(model, optim.SGD(model.parameters(), lr=0.1), total_steps=1000)
            SRigL(1 condensed layer, 75.0% sparse; 29 topology updates in 1000 steps: after 25, 50, ..., 725; at step 0)
        """
        values = sum(layer.budget for layer in self.layers.values())
        plan = describe(
            layers=len(self.layers),
            now=1 - values / sum(layer.in_features * layer.out_features for layer in self.layers.values()),
            target=self.config.sparsity,
            reached_at=self._rule.ramp.end,
            updates=self._update_steps,
            total_steps=self.total_steps,
        )
        return f"SRigL({plan}; at step {self.steps})"

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
        for name, layer in self.layers.items() if world_size() > 1 else ():
            if layer.weight.numel() != self._slots[name]:
                raise RuntimeError(
                    f"layer {name}: the checkpoint is further down a sparsity ramp and made its weight shorter "
                    f"({self._slots[name]} to {layer.weight.numel()} values), but DDP has laid out its buckets already; load "
                    "the model before wrapping it (DistributedDataParallel, accelerator.prepare)"
                )
        self.steps = steps
        self._postponed = list(postponed or [])
        for layer in self.layers.values() if self._rule.ramp.end is not None else ():
            fit_state(self.optimizer, layer.weight)  # as several processes on a ramp have saved it
        fingerprint.check_facts({"step to resume at": steps, "postponed updates": self._postponed}, self._device)
        fingerprint.check_topologies(self.layers, f"when resuming at step {steps}")
        self._arm()

    @property
    def _update_steps(self) -> list[int]:
        return update_steps(
            interval=self._interval,
            stop_updates_at=self.config.stop_updates_at,
            total_steps=self.total_steps,
            offsets=[self._offsets[name] for name in self.trained],
            end=self._rule.ramp.end,
        )

    def _due(self, step: int) -> list[str]:
        """Names of the layers whose topology changes right after optimizer step `step`.

        A ramp takes all layers along: those that are frozen are trimmed, so that they too become sparse.
        """

        def is_due(name: str) -> bool:
            return (
                name in self._postponed
                or (step == self._rule.ramp.end)
                or is_update_step(
                    step,
                    interval=self._interval,
                    stop_updates_at=self.config.stop_updates_at,
                    total_steps=self.total_steps,
                    offset=self._offsets[name],
                )
            )

        return [n for n in self.layers if (self._learns(n) or self._rule.ramp.lowers(n, step)) and is_due(n)]

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
        if is_last and world_size() == 1 and self._rule.may_prune(name, self.steps + 1):
            layer.dense_grad.prune(functools.partial(self._rule.decisive, name, self.steps + 1))

    def _update(self, due: list[str]) -> UpdateReport | None:
        shards.reshard(self._model)
        fingerprint.check_topologies(self.layers, f"before the update of step {self.steps}")
        self._reduced_bytes = self._broadcast_bytes = 0
        state = {name: movable_state(self.optimizer, name, self.layers[name].weight) for name in due}
        growing = [name for name in due if self._learns(name)]
        if self.config.grow == "gradient":
            growing, self._reduced_bytes = average(self.layers, due, self._places)
        due = [name for name in due if name in growing or self._rule.ramp.lowers(name, self.steps)]
        again = bool(self._postponed)
        self._postponed = [] if all_sound(self.layers, due) else due
        if self._postponed and again:
            logger.warning(
                "step %d: the topology update is postponed again, since gradients or weights of some layer are NaN or inf",
                self.steps,
            )
        if self._postponed or not due:
            return None
        rows = [self._update_layer(name, state[name], name in growing) for name in due]
        if self._rule.ramp.end is not None:
            refresh_budgets(self._model)
        fingerprint.check_topologies(self.layers, f"after the update of step {self.steps}")
        return self._report(rows)

    def _update_layer(self, name: str, state: list[Tensor], grows: bool) -> LayerUpdate:
        layer, place, budget = self.layers[name], self._places[name], self._rule.ramp.budget(name, self.steps)
        mine = sharding.is_mine(place)
        weight = layer.to_dense() if mine or shards.is_sharded(layer.weight) else None  # collective if it is sharded
        decided = self._rule.new_mask(name, self.steps, weight, grows) if mine and weight is not None else None
        del weight
        layer.dense_grad.stop()  # its memory goes before the next layer's turn
        new, bytes_sent = sharding.shared_mask(decided, layer, place)
        self._broadcast_bytes += bytes_sent
        used = int((layer.indices >= 0).sum())
        grown = layer.rewire(new, state)
        layer.budget = budget
        if world_size() == 1:  # elsewhere DDP has laid out its buckets for the sizes there were
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

    def _report(self, rows: list[LayerUpdate]) -> UpdateReport:
        layers = self.layers.values()
        positions = sum(layer.out_features * layer.in_features for layer in layers)
        used = sum(int((layer.indices >= 0).sum()) for layer in layers)
        neurons = sum(layer.out_features for layer in layers)
        return UpdateReport(
            step=self.steps,
            drop_fraction=self._rule.drop_fraction(self.steps),
            layers=tuple(rows),
            sparsity=1 - used / positions,
            active_neurons=sum(int(layer.active.sum()) for layer in layers) / neurons,
            itop=sum(explored.count for explored in self._explored.values()) / positions,
            reduced_bytes=self._reduced_bytes,
            broadcast_bytes=self._broadcast_bytes,
        )
