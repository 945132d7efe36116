"""Turn the JSON lines of `run.py` into a Markdown table: means, standard deviations, paired differences.

    python benchmarks/accuracy/table.py benchmarks/accuracy/results/trec.jsonl --against dense
    python benchmarks/accuracy/table.py benchmarks/accuracy/results/digits-mlp.jsonl --departures

The first compares methods. For every method and sparsity the learning rate with the best mean validation score is shown;
test scores take no part in that choice. The second compares what `run.py` was given as --set or --variant with the same
method without; with --with '{"update_every": 50}' the first compares the methods that all had that. Differences are over the
seeds that both have, with their standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Cell = tuple[str, float, str, str]  # method, sparsity, overrides as JSON, variant


def main() -> None:
    arguments = _parse()
    rows = [json.loads(line) for path in arguments.files for line in path.read_text().splitlines()]
    for setting in sorted({(row["task"], row["epochs"], row["batch"]) for row in rows}):
        chosen = [row for row in rows if (row["task"], row["epochs"], row["batch"]) == setting]
        chosen = chosen if arguments.with_ is None else only(chosen, arguments.with_)
        text = table(chosen, None if arguments.departures else arguments.against)
        if text.count("\n") > 1:  # more than a header
            print(f"\n{setting[0]}, {setting[1]:g} epochs of batches of {setting[2]} ({chosen[0]['steps']} steps)\n")
            print(text)


def table(rows: list[Row], against: str | None) -> str:
    """The Markdown table of the runs of one task and length.

    Args:
        against: the method that paired differences are to; at the same sparsity, or dense. None: departures, each from
            the same method without, at the same rate.
    """
    cells = best_rates(rows) if against is not None else _departures(rows)
    other_name = "the method itself" if against is None else against
    lines = [
        f"| method | sparsity | learning rate | seeds | validation | test | test - {other_name} | active neurons |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (method, sparsity, overrides, variant), runs in sorted(cells.items(), key=lambda item: _order(item[0])):
        base = method if against is None else against
        other = cells.get((base, sparsity, "{}", "")) or cells.get((base, 0.0, "{}", ""), {})
        name = " ".join([method, *[overrides] * (overrides != "{}"), *[variant] * (variant != "")])
        first = next(iter(runs.values()))
        cell = [
            name,
            "dense" if sparsity == 0 else f"{sparsity:.0%}",
            f"{first['lr']:g}",
            str(len(runs)),
            spread([run["validation"] for run in runs.values()]),
            spread([run["test"] for run in runs.values()]),
            "" if other is runs else paired(runs, other),
            f"{statistics.mean(run['active_neurons'] for run in runs.values()):.0%}",
        ]
        lines.append(f"| {' | '.join(cell)} |")
    return "\n".join(lines)


def only(rows: list[Row], overrides: dict[str, Any]) -> list[Row]:
    """The runs that had these overrides, as if they had none: what compares methods under them."""
    return [{**row, "overrides": {}} for row in rows if row["overrides"] == overrides]


def best_rates(rows: list[Row]) -> dict[Cell, dict[int, Row]]:
    """For each cell without a departure the runs, by seed, at the learning rate with the best validation score."""
    return {cell: rates[_best(rates)] for cell, rates in _by_rate(rows).items() if not _departs(cell)}


def _departures(rows: list[Row]) -> dict[Cell, dict[int, Row]]:
    """The cells with a departure, at their best rate, and those that they depart from, at the same; by seed."""
    found = _by_rate(rows)
    cells = {}
    for cell, rates in found.items():
        if _departs(cell):
            rate = _best(rates)
            cells[cell], base = rates[rate], (cell[0], cell[1], "{}", "")
            if rate in found.get(base, {}):
                cells[base] = found[base][rate]
    return cells


def _best(rates: dict[float, dict[int, Row]]) -> float:
    """The learning rate with the best mean validation score over the seeds that all rates have."""
    common = set.intersection(*(set(runs) for runs in rates.values()))

    def score(rate: float) -> float:
        runs = [rates[rate][seed] for seed in common or rates[rate]]
        sign = -1 if runs[0]["task"].startswith("shakespeare") else 1  # of a perplexity less is better
        return sign * statistics.mean(run["validation"] for run in runs)

    return max(rates, key=score)


def _by_rate(rows: list[Row]) -> dict[Cell, dict[float, dict[int, Row]]]:
    found: dict[Cell, dict[float, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        overrides = json.dumps(row["overrides"], sort_keys=True)
        cell = (row["method"], row["sparsity"], overrides, row.get("variant") or "")
        found[cell][row["lr"]][row["seed"]] = row
    return found


def _order(cell: Cell) -> tuple[Any, ...]:
    method, sparsity, overrides, variant = cell
    return sparsity, method, _departs(cell), variant, overrides


def _departs(cell: Cell) -> bool:
    return cell[2:] != ("{}", "")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def paired(runs: dict[int, Row], other: dict[int, Row]) -> str:
    """Mean difference of the test scores over common seeds, and its standard error."""
    differences = [runs[seed]["test"] - other[seed]["test"] for seed in runs if seed in other]
    if not differences:
        return "-"
    error = f" ± {statistics.stdev(differences) / math.sqrt(len(differences)):.2f}" if len(differences) > 1 else ""
    return f"{statistics.mean(differences):+.2f}{error}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--against", default="dense", metavar="METHOD")
    parser.add_argument(
        "--with", type=json.loads, dest="with_", metavar="JSON", help="compare methods among the runs with this --set"
    )
    parser.add_argument("--departures", action="store_true", help="what --set and --variant changed, not the methods")
    return parser.parse_args()


if __name__ == "__main__":
    main()
