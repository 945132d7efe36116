"""The subcommands of `hf-srigl`, one file each, with two functions: `add(commands)` and `run(arguments)`.

`add` describes the command to argparse and ends with ``set_defaults(run=run)``. `run` does the work, prints results to
stdout and nothing else there, and raises `common.CommandError` for what a user can be expected to meet.
"""
