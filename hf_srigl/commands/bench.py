"""`hf-srigl bench`: condensed layers and models timed on this machine, beside what else could compute them."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch

from hf_srigl.bench.layers import SHAPES, as_data, bench_layers, head, report
from hf_srigl.bench.models import MODELS, bench_models
from hf_srigl.commands.common import CommandError, Commands, on_terminal, sparsity

DESCRIPTION = (
    "Times single layers and whole models with random weights on this machine: dense fp32, bf16 and dynamic int8, torch CSR, "
    "condensed fp32 and bf16, and sparselab where it is installed. Calls take turns; numbers are medians, shown as how many "
    "times faster than dense fp32 (below 1: slower); with one thread they count its processor time. Close other programs first."
)


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="time condensed layers and models on this machine, beside dense, bf16, int8 and CSR (about two minutes)",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "--shapes",
        type=_shape,
        nargs="+",
        default=list(SHAPES),
        metavar="OUTxIN",
        help="layers (768x3072 3072x768 3072x3072)",
    )
    parser.add_argument(
        "--rows", type=_count, nargs="*", default=[1, 8, 64, 256], metavar="N", help="tokens (1 8 64 256)"
    )
    parser.add_argument(
        "--sparsity", type=sparsity, nargs="+", default=[0.9], metavar="S", help="shares of zeros (0.9)"
    )
    parser.add_argument(
        "--threads", type=_count, nargs="+", metavar="N", help="numbers of threads (what torch uses here)"
    )
    parser.add_argument("--seconds", type=float, default=0.05, metavar="T", help="per contestant and case (0.05)")
    parser.add_argument(
        "--gradients", type=_count, nargs="*", default=[1024], metavar="N", help="rows for forward + backward (1024)"
    )
    parser.add_argument(
        "--models",
        nargs="*",
        default=list(MODELS),
        choices=list(MODELS),
        metavar="NAME",
        help=f"of {', '.join(MODELS)} (all)",
    )
    parser.add_argument(
        "--gather", action="store_true", help="also the paper's gather through torch.compile (slow to start)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write what is printed to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    text = measure(arguments)
    print(text)
    if arguments.output is not None:
        try:
            arguments.output.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"cannot write to {arguments.output}: {error.strerror}") from error


def measure(arguments: argparse.Namespace) -> str:
    """Measure what the options ask for; the report as Markdown, or JSON. Progress goes to stderr."""
    threads = arguments.threads or [torch.get_num_threads()]

    def progress(what: str) -> None:
        print(f"\r\033[K{what}" if on_terminal() else what, end="", file=sys.stderr, flush=True)
        if not on_terminal():
            print(file=sys.stderr)

    title = head(f"hf-srigl {' '.join(sys.argv[1:])}")
    layers = bench_layers(
        arguments.shapes,
        arguments.rows,
        arguments.sparsity,
        threads,
        seconds=arguments.seconds,
        gradients=arguments.gradients,
        gather=arguments.gather,
        progress=progress,
    )
    models = bench_models(arguments.models, arguments.sparsity, threads, seconds=arguments.seconds, progress=progress)
    if on_terminal():
        print("\r\033[K", end="", file=sys.stderr)
    if arguments.json:
        return json.dumps({"head": title, "layers": as_data(layers), "models": as_data(models)}, indent=2)
    return report(title, layers, models)


def _shape(text: str) -> tuple[int, int]:
    sizes = re.fullmatch(r"(\d+)x(\d+)", text)
    if sizes is None or "0" in sizes.groups():
        raise argparse.ArgumentTypeError(f"expected OUTxIN such as 768x3072, got {text!r}")
    return int(sizes[1]), int(sizes[2])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)
