"""How sparse is a model, layer by layer and as a whole: rows and totals, as data and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.model.attachment import condensed_layers
from hf_srigl.ops.cpu.copies import kept_copy


@dataclass(frozen=True)
class LayerRow:
    """One condensed layer. `values` are weights stored and used; bytes count weight, indices, active and bias.

    `dense_bytes` is what `nn.Linear` would hold in the same dtype. `multiply_adds` and `dense_multiply_adds` are for one
    input vector.
    """

    name: str
    out_features: int
    in_features: int
    fan_in: int
    active_neurons: int
    sparsity: float
    values: int
    bytes: int
    dense_bytes: int
    multiply_adds: int
    dense_multiply_adds: int


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsity_report` returns: `rows` and totals; ``str(report)`` is a table, ``report.to_dict()`` is JSON-ready.

    `target_sparsity` is the share of zeros in the weights of the condensed layers; `model_sparsity` the share of all
    parameters of the equivalent dense model (embeddings, norms, biases and heads included) that need not be stored.
    `parameters` counts stored values in use, `dense_parameters` those of the dense model; `bytes` include buffers, and
    `copy_bytes` are the dense copies that layers too dense to gain keep for inference at this moment (`docs/kernels.md`).
    """

    rows: tuple[LayerRow, ...]
    target_sparsity: float
    model_sparsity: float
    parameters: int
    dense_parameters: int
    bytes: int
    dense_bytes: int
    multiply_adds: int
    dense_multiply_adds: int
    copy_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All numbers, JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        header = ("layer", "out x in", "fan-in", "active", "sparsity", "values")
        body = [
            (
                row.name,
                f"{row.out_features} x {row.in_features}",
                str(row.fan_in),
                f"{row.active_neurons}/{row.out_features}",
                f"{row.sparsity:.2%}",
                f"{row.values:,}",
            )
            for row in self.rows
        ]
        table = [header, *body]
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        lines = []
        for line in table:
            cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            lines.append("  ".join([line[0].ljust(widths[0]), *cells]))
        lines.insert(1, "-" * len(lines[0]))
        totals = (
            f"targets {self.target_sparsity:.2%} sparse, whole model {self.model_sparsity:.2%}; "
            f"parameters {self.parameters:,} of {self.dense_parameters:,}; "
            f"bytes {self.bytes:,} of {self.dense_bytes:,}; multiply-adds of the condensed layers per input vector "
            f"{self.multiply_adds:,} of {self.dense_multiply_adds:,}"
        )
        if self.copy_bytes:
            totals += f"; {self.copy_bytes:,} bytes of dense copies kept for inference"
        return "\n".join([*lines, "-" * len(lines[0]), totals])


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Rows for every condensed layer and totals for the targets and the whole model; works for a dense model too.

    Shared parameters count once. A layer used several times in one forward counts its multiply-adds once.

    Example:
        >>> from hf_srigl import SRigLConfig, sparsify
        >>> print(sparsity_report(sparsify(nn.Sequential(nn.Linear(40, 10)), SRigLConfig(sparsity=0.9))))
        layer  out x in  fan-in  active  sparsity  values
        -------------------------------------------------
        0       10 x 40       4   10/10    90.00%      40
        -------------------------------------------------
        targets 90.00% sparse, whole model 87.80%; parameters 50 of 410; bytes 290 of 1,640; multiply-adds of the \
condensed layers per input vector 40 of 400
    """
    layers = condensed_layers(model)
    rows = tuple(_row(name, layer) for name, layer in layers.items())
    tensors = [*model.parameters(), *model.buffers()]
    stored_parameters = sum(p.numel() for p in model.parameters())
    stored_bytes = sum(t.numel() * t.element_size() for t in tensors)
    unused = sum(layer.weight.numel() for layer in layers.values()) - sum(row.values for row in rows)
    positions = sum(row.dense_multiply_adds for row in rows)
    values = sum(row.values for row in rows)
    parameters = stored_parameters - unused
    dense_parameters = parameters - values + positions
    dense_bytes = stored_bytes - sum(row.bytes for row in rows) + sum(row.dense_bytes for row in rows)
    copies = [kept_copy(layer.weight) for layer in layers.values()]
    return SparsityReport(
        rows=rows,
        target_sparsity=1 - values / positions if positions else 0.0,
        model_sparsity=1 - parameters / dense_parameters if dense_parameters else 0.0,
        parameters=parameters,
        dense_parameters=dense_parameters,
        bytes=stored_bytes,
        dense_bytes=dense_bytes,
        multiply_adds=values,
        dense_multiply_adds=positions,
        copy_bytes=sum(copy.numel() * copy.element_size() for copy in copies if copy is not None),
    )


def _row(name: str, layer: CondensedLinear) -> LayerRow:
    positions = layer.out_features * layer.in_features
    values = int((layer.indices >= 0).sum())
    tensors = [layer.weight, layer.indices, layer.active] + ([] if layer.bias is None else [layer.bias])
    size = layer.weight.element_size()
    bias_bytes = 0 if layer.bias is None else layer.bias.numel() * layer.bias.element_size()
    return LayerRow(
        name=name,
        out_features=layer.out_features,
        in_features=layer.in_features,
        fan_in=layer.fan_in,
        active_neurons=int(layer.active.sum()),
        sparsity=1 - values / positions,
        values=values,
        bytes=sum(t.numel() * t.element_size() for t in tensors),
        dense_bytes=positions * size + bias_bytes,
        multiply_adds=values,
        dense_multiply_adds=positions,
    )
