"""What a topology update did, as data: returned by `SRigL.step`, logged by the Trainer, drawn by `plots`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerUpdate:
    """What one update did to one layer. Counts are connections (`dropped`, `grown`) and neurons (`active`, `neurons`).

    `itop` is the share of the layer's positions that were ever active.
    """

    name: str
    dropped: int
    grown: int
    fan_in: int
    active: int
    neurons: int
    itop: float


@dataclass(frozen=True)
class UpdateReport:
    """What one call of `SRigL.step` changed, and where all condensed layers stand afterwards.

    `sparsity`, `active_neurons` (a share) and `itop` are over all condensed layers; `layers` has a row for each layer
    that was updated at this step.
    """

    step: int
    drop_fraction: float
    layers: tuple[LayerUpdate, ...]
    sparsity: float
    active_neurons: float
    itop: float
    reduced_bytes: int = 0
    broadcast_bytes: int = 0

    @property
    def dropped(self) -> int:
        """Connections dropped, over the layers updated."""
        return sum(row.dropped for row in self.layers)

    @property
    def grown(self) -> int:
        """Connections grown, over the layers updated."""
        return sum(row.grown for row in self.layers)

    def metrics(self) -> dict[str, float]:
        """The numbers for a training log, under names that group in TensorBoard; `docs/training_log.md` defines them.

        What says nothing is left out: the ITOP rate once every position has been tried (as from the start of a ramp that
        begins dense), the bytes moved in a single process.
        """
        numbers: dict[str, float] = {
            "srigl/sparsity": self.sparsity,
            "srigl/active_neurons": self.active_neurons,
            "srigl/dropped": self.dropped,
            "srigl/grown": self.grown,
            "srigl/drop_fraction": self.drop_fraction,
        }
        if self.itop < 1:
            numbers["srigl/itop"] = self.itop
        if self.reduced_bytes > 0:
            numbers["srigl/reduced_bytes"] = self.reduced_bytes
        return numbers

    def __str__(self) -> str:
        return (
            f"step {self.step}: {len(self.layers)} layers, dropped {self.dropped}, grown {self.grown}, sparsity "
            f"{self.sparsity:.2%}, active neurons {self.active_neurons:.2%}, ITOP {self.itop:.2%}"
        )
