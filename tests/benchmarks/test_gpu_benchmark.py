"""`benchmarks/gpu.py --dry-run`: every section runs at tiny sizes, and a section that fails does not stop the others."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """if True:
    import os, sys, time
    sys.argv = ["benchmarks/gpu.py", "--dry-run"]
    sys.path.insert(0, "benchmarks")
    import gpu

    def fails(sizes):
        raise ArithmeticError("what went wrong")

    def dies(sizes):
        os._exit(7)

    def hangs(sizes):
        time.sleep(100)

    measured = {name: section for name, section in gpu.SECTIONS.items() if name != "Tests"}
    broken = {"Fails": (fails, 60), "Dies": (dies, 60), "Hangs": (hangs, 1)}
    gpu.SECTIONS = broken | measured | {"Late": (fails, 0)}
    gpu.main(["--dry-run", "--only", *gpu.SECTIONS, "--results", RESULTS, "--minutes", "30"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the GPU benchmark is for Linux")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_dry_run_records_results_and_failures(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_SRIGL", "TRITON_"))}
    command = [sys.executable, "-c", SCRIPT.replace("RESULTS", repr(str(tmp_path)))]
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-3000:]  # since something failed
    (path,) = tmp_path.iterdir()
    assert path.name == "gpu-dry-run.md"
    head, *sections = path.read_text().split("\n## ")
    assert "GPU: NONE (dry run on the CPU, no figure below means anything)" in head
    text = {section.partition("\n")[0]: section for section in sections}
    assert "**FAILED**: ArithmeticError" in text["Fails"]
    assert "what went wrong" in text["Fails"]
    assert "**FAILED**: the process ended with status 7" in text["Dies"]
    assert "**FAILED**: not finished after 1 s" in text["Hangs"]
    assert "FAILED" in text["Late"]
    whole = [name for name in text if name not in ("Fails", "Dies", "Hangs", "Late")]
    assert len(whole) == 5
    for name in whole:
        assert "FAILED" not in text[name], text[name]
    assert "ROW_LIMITS = ((" in text["Layers"]
    assert "| 90%, 40, 12x20 |" in text["Layers"]
    assert "| dense |" in text["Layers"]
    for name in ("Training: GPT-2 medium", "Training: Llama 1B"):
        row = next(line for line in text[name].splitlines() if line.startswith("| the same without embeddings"))
        assert float(row.split("|")[-2]) < 0.25
        assert "step that updates all layers" in text[name]
    for name in ("Generation, eager", "Generation, compiled with CUDA graphs"):
        assert "| 4 |" in text[name]
