"""What a training's topology updates did, kept: in memory, in checkpoints, and drawn at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from typing import Any

from hf_srigl.model.report import LayerRow, SparsityReport
from hf_srigl.plots import plot_layers, plot_topology
from hf_srigl.rule.updates import LayerUpdate, UpdateReport

HISTORY_FILE = "srigl_history.json"
TOPOLOGY_PICTURE, LAYERS_PICTURE = "topology.png", "layers.png"


@dataclass
class History:
    """The model at step `start_step`, before the first of the `reports`; these in order."""

    start: SparsityReport
    start_step: int = 0
    reports: list[UpdateReport] = field(default_factory=list)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything as JSON, whole or not at all.

        Example:
            >>> from torch import nn; from hf_srigl import sparsity_report
            >>> History(sparsity_report(nn.Linear(2, 2)), 5).save(tmp_path / "history.json")
            >>> History.load(tmp_path / "history.json").start_step
            5
        """
        names = list(dict.fromkeys(row.name for report in self.reports for row in report.layers))
        number = {name: i for i, name in enumerate(names)}
        columns = [column.name for column in fields(LayerUpdate) if column.name != "name"]
        updates = []
        for report in self.reports:
            totals: dict[str, Any] = {
                f.name: getattr(report, f.name) for f in fields(UpdateReport) if f.name != "layers"
            }
            rows = [[number[row.name], *(getattr(row, column) for column in columns)] for row in report.layers]
            updates.append({**totals, "layers": rows})
        written = {"version": 1, "start_step": self.start_step, "start": asdict(self.start)}
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            json.dump({**written, "layers": names, "columns": columns, "updates": updates}, file)
        os.replace(f"{path}.part", path)

    @classmethod
    def load(cls, path: str | PathLike[str], until: int | None = None) -> History:
        """What `save` wrote; with `until`, up to that step, from which a training goes on.

        Raises:
            OSError: the file cannot be read. ValueError: it is not one that `save` wrote.
        """
        with open(path, encoding="utf-8") as file:
            text = file.read()
        try:
            stored = json.loads(text)
            if stored["version"] != 1:
                raise ValueError(f"version {stored['version']}, this hf_srigl reads version 1")
            rows = tuple(LayerRow(**row) for row in stored["start"]["rows"])
            history = cls(SparsityReport(**{**stored["start"], "rows": rows}), int(stored["start_step"]))
            for update in stored["updates"]:
                layers = tuple(
                    LayerUpdate(name=stored["layers"][i], **dict(zip(stored["columns"], values, strict=True)))
                    for i, *values in update["layers"]
                )
                report = UpdateReport(**{**update, "layers": layers})
                if until is None or report.step <= until:
                    history.reports.append(report)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is not a history of topology updates: {error or type(error).__name__}") from error
        return history

    def draw(self, path: str | PathLike[str], *, total_steps: int | None = None, title: str | None = None) -> None:
        """`plot_topology` of it all.

        Raises:
            ImportError: matplotlib is not installed. ValueError: there was no update.
        """
        plot_topology(
            self.reports, path, start=self.start, start_step=self.start_step, total_steps=total_steps, title=title
        )


def leave_pictures(
    history: History, end: SparsityReport, folder: str | PathLike[str], total_steps: int
) -> Sequence[str]:
    """Write the history, a picture of it (if there was an update) and one of the layers into `folder`; their names.

    Raises:
        ImportError: matplotlib is not installed; the history is written then.
    """
    os.makedirs(folder, exist_ok=True)
    history.save(os.path.join(folder, HISTORY_FILE))
    plot_layers(end, os.path.join(folder, LAYERS_PICTURE))
    if not history.reports:
        return [HISTORY_FILE, LAYERS_PICTURE]
    history.draw(os.path.join(folder, TOPOLOGY_PICTURE), total_steps=total_steps)
    return [HISTORY_FILE, LAYERS_PICTURE, TOPOLOGY_PICTURE]
