"""The suite in every way this machine can run it: as it is, with each instruction set it has, and without kernels.

    python tests/every_kernel.py                 # everything, `make test-isa`
    python tests/every_kernel.py tests/ops -n 2  # arguments go to pytest

Prints one line a way as it is done; a failed way's output is printed after its line. Exit code 1 if any failed.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from hf_srigl.ops.cpu import library

ROOT = Path(__file__).parents[1]
SETS = ("avx512", "avx2", "neon", "portable")


def ways() -> dict[str, dict[str, str]]:
    """name -> environment variables of each way there is here, the most restricted ones last."""
    if not library.available():
        return {f"without kernels ({library.reason()})": {}}
    told, set_isa = library.isa(), library.loaded().srigl_set_isa
    set_isa(b"")  # whatever this process was told
    found: dict[str, dict[str, str]] = {f"as it is ({library.isa()})": {}}
    for name in SETS:
        if set_isa(name.encode()) == 0:
            found[f"{library.ISA_VARIABLE}={name}"] = {library.ISA_VARIABLE: name}
    set_isa(told.encode())
    return found | {"without kernels": {library.PATH_VARIABLE: str(ROOT / "no such library")}}


def run(name: str, variables: dict[str, str], arguments: list[str]) -> bool:
    """Run pytest under these variables and say how it went."""
    clean = {key: value for key, value in os.environ.items() if key != library.ISA_VARIABLE}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=clean | variables, capture_output=True, text=True)
    print(f"{name:<24} {summary(done.stdout)} ({time.perf_counter() - start:.0f} s)", flush=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    return done.returncode == 0


def summary(output: str) -> str:
    """The counts, from pytest's last line that has any: "12 passed, 3 skipped"."""
    counts = re.findall(r"^=* ?(\d+ [a-z].*) in [\d.]+s", output, re.MULTILINE)
    return counts[-1] if counts else "pytest ran nothing"


if __name__ == "__main__":
    outcomes = [run(name, variables, sys.argv[1:]) for name, variables in ways().items()]
    sys.exit(0 if all(outcomes) else 1)
