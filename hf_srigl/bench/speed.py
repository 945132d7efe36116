"""How long a forward pass takes beside the dense model: measured here and now, or not stated."""

from __future__ import annotations

import copy
import datetime
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_srigl.model.surgery import densify


@dataclass(frozen=True)
class Speed:
    """What `measure_speed` found: median seconds of one forward pass, and under which circumstances.

    `inputs` names the tensors and their shapes; `machine` the processor or GPU, threads, dtype and torch version.
    """

    condensed: float
    dense: float
    inputs: str
    machine: str
    date: str

    def sentence(self) -> str:
        """The two times, their ratio and the circumstances, in one line.

        Example:
            >>> print(Speed(0.05, 0.2, "input_ids 1 x 128", "1 thread", "now").sentence())
            One forward pass takes 50 ms, 0.25 of the dense model's 200 ms (input_ids 1 x 128; 1 thread; median, measured now).
        """
        condensed, dense = (f"{1000 * seconds:.3g} ms" for seconds in (self.condensed, self.dense))
        ratio = self.condensed / self.dense
        return (
            f"One forward pass takes {condensed}, {ratio:.2f} of the dense model's {dense} ({self._circumstances()})."
        )

    def caption(self) -> str:
        """The circumstances alone, under a table that has the times, as in a model card.

        Example:
            >>> Speed(0.05, 0.2, "input_ids 1 x 128", "1 thread", "2026-11-21").caption()
            'Forward pass: input_ids 1 x 128; 1 thread; median, measured 2026-11-21.'
        """
        return f"Forward pass: {self._circumstances()}."

    def _circumstances(self) -> str:
        return f"{self.inputs}; {self.machine}; median, measured {self.date}"


@torch.no_grad()
def measure_speed(model: nn.Module, inputs: Mapping[str, Any], *, seconds: float = 2.0, at_least: int = 5) -> Speed:
    """Time forward passes of a condensed model and of its dense twin, in turns, and keep the result with the model.

    The twin has the same weights, zeros included (`densify` of a copy), and exists only meanwhile. Model cards written
    afterwards show the result; without a measurement they show no time. A copy of the model keeps it, `densify` drops it.

    Args:
        model: a condensed model; measured in eval mode, on its device, with torch's present number of threads.
        inputs: what the model is called with, by name.
        seconds: about how long to measure each of the two.
        at_least: passes of each, however long they take.

    Raises:
        ValueError: the model is not condensed.

    Example:
        >>> from hf_srigl import SRigLConfig, sparsify
        >>> model = sparsify(nn.Sequential(nn.Linear(64, 64)), SRigLConfig())
        >>> speed = measure_speed(model, {"input": torch.ones(8, 64)}, seconds=0.01)
        >>> speed.inputs, speed.condensed > 0, speed.dense > 0
        ('input 8 x 64', True, True)
    """
    was_training = model.training
    twins = {"condensed": model.eval(), "dense": densify(copy.deepcopy(model)).eval()}
    times: dict[str, list[float]] = {name: [] for name in twins}
    try:
        for twin in twins.values():
            twin(**inputs)  # kernels are planned, memory is allocated
        end = time.perf_counter() + seconds * len(twins)
        while len(times["dense"]) < at_least or time.perf_counter() < end:
            for name, twin in twins.items():
                _wait(model)
                start = time.perf_counter()
                twin(**inputs)
                _wait(model)
                times[name].append(time.perf_counter() - start)
    finally:
        model.train(was_training)
    speed = Speed(
        **{name: statistics.median(kept) for name, kept in times.items()},
        inputs=", ".join(f"{name} {_shape(value)}" for name, value in inputs.items() if isinstance(value, Tensor)),
        machine=_machine(model),
        date=datetime.date.today().isoformat(),
    )
    model.__dict__["srigl_speed"] = speed
    return speed


def speed_of(model: nn.Module) -> Speed | None:
    """What was measured for this model; None if nothing was."""
    speed = model.__dict__.get("srigl_speed")
    return speed if isinstance(speed, Speed) else None


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _wait(model: nn.Module) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def _machine(model: nn.Module) -> str:
    weight = next(model.parameters())
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.is_cuda:
        return f"{torch.cuda.get_device_name(weight.device)}, {dtype}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{platform.machine()} {capability}, {threads} thread{'s'[: threads > 1]}, {dtype}, torch {torch.__version__}"
    )
