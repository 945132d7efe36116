"""The house: imports one way, small files, what the pure files know nothing of, names that are promised."""

import ast
from pathlib import Path

import pytest

import hf_srigl

ROOT = Path(hf_srigl.__file__).parent

# Every file may import only files before it. docs/design.md shows the same order with the reasons.
ORDER = [
    "config",
    "schedule",
    "distribution",
    "selection",
    "topology",
    "rigl",
    "ops.collect",
    "ops.reference",
    "ops.library",
    "ops.plans",
    "ops.cpu",
    "ops.copies",
    "ops.choose_cuda",
    "ops.triton",
    "ops.cuda",
    "ops.choose",
    "ops",
    "shards",
    "linear",
    "unstructured",
    "ramp",
    "targets",
    "attachment",
    "sharding",
    "fingerprint",
    "gradients",
    "checkpoints",
    "calibration",
    "surgery",
    "masks",
    "exploration",
    "optimizers",
    "updates",
    "rule",
    "srigl",
    "report",
    "memory",
    "plots.style",
    "plots.training",
    "plots.layers",
    "plots.comparison",
    "plots",
    "history",
    "speed",
    "card",
    "hub",
    "callback",
    "distillation",
    "trainer",
    "demo",
    "measure",
    "bench",
    "bench_models",
    "commands",
    "commands.common",
    "commands.checkpoints",
    "commands.inspect",
    "commands.calibrate",
    "commands.condense",
    "commands.densify",
    "commands.plot",
    "commands.bench",
    "commands.demo",
    "cli",
]


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    """Dotted names, relative to the package, of everything a file imports from it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_srigl":
            base = node.module.removeprefix("hf_srigl").lstrip(".")
            for alias in node.names:
                inside = f"{base}.{alias.name}".lstrip(".")
                names.add(inside if inside in ORDER else base)
        elif isinstance(node, ast.Import):
            names.update(a.name.removeprefix("hf_srigl.") for a in node.names if a.name.startswith("hf_srigl."))
    return names - {""}


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path):
    name = module_name(path)
    assert name in ORDER, f"{name} has no place in the order"
    later = [other for other in imported(path) if ORDER.index(other) >= ORDER.index(name)]
    assert later == []


@pytest.mark.parametrize("name", ["schedule", "distribution", "topology"])
def test_the_pure_files_know_nothing_of_transformers_files_or_processes(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    modules = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for part in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    allowed = {"__future__", "collections.abc", "math", "typing", "torch", "hf_srigl.schedule", "hf_srigl.selection"}
    assert modules <= allowed
    assert "open(" not in (ROOT / f"{name}.py").read_text()


def test_files_are_small():
    long = {module_name(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 360}
    assert long == {}


def test_no_assert_on_users_and_nothing_unfinished():
    for path in FILES:
        text = path.read_text()
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))), path
        for word in ("TODO", "FIXME", "XXX", "hasattr("):
            assert word not in text, f"{path}: {word}"


def test_public_names():
    assert set(hf_srigl.__all__) == {
        "CondensedLinear", "SRigL", "SRigLCallback", "SRigLConfig", "SRigLTrainerMixin", "SparseTrainer", "densify",
        "sparsify", "sparsity_report",
    }  # fmt: skip
    from hf_srigl.topology import update_mask

    for thing in [*(getattr(hf_srigl, name) for name in hf_srigl.__all__), update_mask]:
        assert ">>>" in thing.__doc__ or thing is hf_srigl.SRigLTrainerMixin, thing
