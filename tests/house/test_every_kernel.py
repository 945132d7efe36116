"""The script behind `make test-isa`: which ways it finds, and what it makes of pytest's output and exit code."""

import runpy
from pathlib import Path

import pytest

from hf_srigl.ops.cpu import library

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "every_kernel.py"))


def test_the_ways_of_this_machine():
    before = library.available() and library.isa()
    ways = SCRIPT["ways"]()
    assert (library.available() and library.isa()) == before  # asking changes nothing
    if not library.available():
        assert ways == {f"without kernels ({library.reason()})": {}}
        return
    first, *middle, last = ways.items()
    assert first[0].startswith("as it is (")
    assert first[1] == {}
    assert [variables for _, variables in middle][-1] == {"HF_SRIGL_ISA": "portable"}  # every machine has it
    assert first[0] == f"as it is ({middle[0][1]['HF_SRIGL_ISA']})"  # the best comes first
    assert set(last[1]) == {"HF_SRIGL_LIBRARY"}
    assert not Path(last[1]["HF_SRIGL_LIBRARY"]).exists()


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("..s [100%]\n2 passed, 1 skipped in 0.52s\n", "2 passed, 1 skipped"),
        ("FAILED x - 3 passed in 1s\n==== 1 failed, 2 passed in 75.10s (0:01:15) ====", "1 failed, 2 passed"),
        ("sss\n3 skipped in 0.01s", "3 skipped"),
        ("ImportError", "pytest ran nothing"),
    ],
)  # fmt: skip
def test_counts(output, counts):
    assert SCRIPT["summary"](output) == counts


def test_a_failure_is_told_and_shown(capsys):
    assert SCRIPT["run"]("a way", {}, ["--noconftest", "--version"])
    assert not SCRIPT["run"]("another", {}, ["--noconftest", "--no-such-option"])
    out = capsys.readouterr().out
    assert "a way  " in out
    assert "--no-such-option" in out
