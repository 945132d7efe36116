"""Everything that is to be measured on a GPU, in one command: tests, layers, thresholds, generation, training.

    python benchmarks/gpu.py              # one NVIDIA GPU, triton; writes benchmarks/results/gpu-<its name>.md
    python benchmarks/gpu.py --dry-run    # tiny sizes on the CPU, in triton's interpreter: does it all run?

Each section runs in a process of its own with a time limit, and the file is written after each: a failure is recorded
where its result would stand, and the others go on. Values are checked before anything is timed.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

if "--dry-run" in sys.argv:  # before triton is imported by anything
    os.environ |= {"TRITON_INTERPRET": "1", "HF_SRIGL_KERNEL": "triton", "CUDA_VISIBLE_DEVICES": ""}

import gpu_layers
import gpu_models
import torch
from gpu_timing import Sizes

ROOT = Path(__file__).parent.parent
Section = Callable[[Sizes], str]


def device(sizes: Sizes) -> str:
    """The lines that say what was measured on; the GPU's name comes first."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "transformers", "accelerate"))
    if sizes.device == "cpu":
        return f"- GPU: NONE (dry run on the CPU, no figure below means anything)\n- {packages}"
    properties = torch.cuda.get_device_properties(0)
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory,power.limit",
        "--format=csv,noheader",
    ]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError) as error:
        driver = f"not known ({error})"
    return (
        f"- GPU: {properties.name}\n- {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB\n- driver, max clocks, power limit: {driver}\n- CUDA {torch.version.cuda}, "
        f"{packages}"
    )


def suite(sizes: Sizes) -> str:
    """The GPU tests of the suite; their summary, and the failures if there are any."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", "tests/ops/test_gpu.py"]
    if sizes.device == "cpu":
        command.append("--collect-only")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "HF_SRIGL_KERNEL")
    }
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=140)
    lines = done.stdout.strip().splitlines()
    kept = lines[-1:] if done.returncode == 0 else lines[-40:]
    return "\n".join(["```", *kept, "```", f"exit status {done.returncode}"])


# name -> (what to run, the longest it may take in seconds)
SECTIONS: dict[str, tuple[Section, int]] = {
    "Layers": (gpu_layers.layers, 200),
    "Training: GPT-2 medium": (functools.partial(gpu_models.training, "gpt2-medium"), 60),
    "Training: Llama 1B": (functools.partial(gpu_models.training, "llama-1b"), 90),
    "Generation, eager": (functools.partial(gpu_models.generation, compiled=False), 60),
    "Generation, compiled with CUDA graphs": (functools.partial(gpu_models.generation, compiled=True), 150),
    "Tests": (suite, 150),
}


def _child(section: Section, sizes: Sizes, pipe: multiprocessing.connection.Connection) -> None:
    try:
        pipe.send(section(sizes))
    except BaseException as error:
        place = traceback.format_exc().strip().splitlines()[-12:]
        pipe.send("\n".join([f"**FAILED**: {type(error).__name__}", "", "```", *place, "```"]))


def run(section: Section, sizes: Sizes, seconds: float) -> str:
    """What the section says, or what went wrong; a process of its own, so that a GPU error ends with it."""
    # Nothing of this process must touch the GPU; without one, forking saves the imports
    context = multiprocessing.get_context("fork" if sizes.device == "cpu" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(section, sizes, sender))
    start = time.perf_counter()
    process.start()
    sender.close()
    try:
        text = receiver.recv() if receiver.poll(seconds) else f"**FAILED**: not finished after {seconds:.0f} s"
    except EOFError:
        process.join()
        text = f"**FAILED**: the process ended with status {process.exitcode}"
    process.kill()
    process.join()
    return f"{text}\n\n({time.perf_counter() - start:.0f} s)"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="sections that do not fit are recorded as not run")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the file")
    options = parser.parse_args(arguments)
    sizes = Sizes.dry() if options.dry_run else Sizes.whole()
    end = time.perf_counter() + options.minutes * 60
    about = run(device, sizes, 60)
    if "FAILED" in about:
        raise SystemExit(f"no usable CUDA device:\n{about}")
    name = (
        "dry-run"
        if options.dry_run
        else re.sub(r"[^a-z0-9]+", "-", about.splitlines()[0].removeprefix("- GPU: ").lower())
    )
    path = options.results / f"gpu-{name.strip('-')}.md"
    options.results.mkdir(parents=True, exist_ok=True)
    head = f"# {'Dry run' if options.dry_run else 'GPU'}\n\n- command: `python {' '.join(sys.argv)}`\n"
    head += f"- date: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC\n{about.rsplit('(', 1)[0].strip()}\n"
    done: list[str] = []
    for title in options.only:
        section, limit = SECTIONS[title]
        left = end - time.perf_counter()
        print(f"{title} ...", flush=True)
        text = run(section, sizes, min(limit, left)) if left > 0 else "**NOT RUN**: no time was left"
        done.append(f"## {title}\n\n{text}\n")
        path.write_text("\n".join([head, *done]))
        print(text, flush=True)
    print(f"written to {path}")
    if any("FAILED" in text or "NOT RUN" in text for text in done):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
