"""The program `hf-srigl`: finds the command, runs it, turns failures into exit codes. `commands/` has the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import hf_srigl
from hf_srigl.commands import bench, condense, demo, densify, inspect, plot
from hf_srigl.commands.common import CommandError, loading_bars

COMMANDS = (inspect, condense, densify, plot, bench, demo)  # in the order of the help


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code is 0, or 1 after one sentence on stderr for what can be expected to fail.

    Args:
        argv: without the program's name; default: the process's.

    Raises:
        SystemExit: argparse's, after help (0) and wrong usage (2).

    Example:
        >>> main(["inspect", "no/such/folder"])
        1
    """
    arguments = _parser().parse_args(argv)
    try:
        with loading_bars(False):
            arguments.run(arguments)
    except CommandError as error:
        print(f"hf-srigl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nhf-srigl: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-srigl",
        description="Sparse stays sparse: SRigL training for Hugging Face transformers.",
        epilog="hf-srigl COMMAND --help says more about a command and shows examples.",
    )
    parser.add_argument("--version", action="version", version=f"hf_srigl {hf_srigl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
