"""`hf-srigl demo`: a small ViT trained sparse, beside its dense twin."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_srigl.commands import common
from hf_srigl.commands.common import CommandError, Commands
from hf_srigl.demo import run_demo


def add(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a small ViT sparse on real digits, beside its dense twin (about two minutes on two cores)",
        description="Trains a small ViT from scratch on MNIST digits, sparse and, for comparison, dense; evaluates both, "
        "saves them, reloads the sparse one in a new process, and ends with a table and a picture. Needs no network.",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("demo_output"), metavar="DIR", help="folder for the files (demo_output)"
    )
    length = demo.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=common.epochs, default=8, metavar="N", help="passes over the 4,000 digits (8)")
    length.add_argument(
        "--max-steps", type=common.steps, metavar="N", help="optimizer steps instead, 10 for a quick look"
    )
    demo.add_argument(
        "--sparsity", type=common.sparsity, default=0.9, metavar="S", help="share of zeros in the target layers (0.9)"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, topology and order of digits (0)")
    demo.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write to {arguments.output}: {error.strerror}") from error
    try:
        run_demo(
            arguments.output,
            epochs=arguments.epochs,
            max_steps=arguments.max_steps,
            sparsity=arguments.sparsity,
            seed=arguments.seed,
        )
    except ImportError as error:
        raise CommandError(str(error)) from error
