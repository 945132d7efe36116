"""The house: imports one way, small files, what the pure files know nothing of, names that are promised."""

import ast
from pathlib import Path

import pytest

import hf_srigl

ROOT = Path(hf_srigl.__file__).parent

# The wings in drawing order, each with its files. A file imports only from wings named before its own, and within its wing only
# files named before it. A wing's own page is `__init__`: where it has code (ops, plots) it is named last.
WINGS = {
    "": ["config", "processes", "install"],
    "rule": ["draws", "schedule", "distribution", "selection", "topology", "rigl", "updates"],
    "ops": [
        "collect", "reference", "cpu.library", "cpu.plans", "cpu.calls", "cpu.copies",
        "cuda", "cuda.choose_cuda", "cuda.triton_kernels", "cuda.calls", "choose", "__init__",
    ],
    "layers": ["shards", "linear", "unstructured"],
    "model": ["ramp", "attachment", "targets", "calibration", "conversion", "places", "surgery", "masks", "report"],
    "plots": ["style", "training", "layers", "comparison", "__init__"],
    "bench": ["measure", "speed", "layers", "models"],
    "files": ["card", "saving", "quantizer"],
    "training": [
        "sharding", "fingerprint", "gradients", "checkpoints", "exploration", "optimizers", "plan", "decision", "srigl",
        "memory", "history", "callback", "distillation", "trainer",
    ],
    "demo": ["__init__"],
    "commands": [
        "__init__", "common", "checkpoints", "inspect", "calibrate", "condense", "densify", "plot", "bench", "demo",
    ],
    "cli": ["__init__"],
}  # fmt: skip
ORDER = [
    ".".join(part for part in (wing, file) if part).removesuffix(".__init__") for wing in WINGS for file in WINGS[wing]
]
PLACELESS = {
    "__init__",
    "rule",
    "layers",
    "model",
    "bench",
    "files",
    "training",
    "ops.cpu",
}  # pages with a sentence and no code


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


FILES = [path for path in sorted(ROOT.rglob("*.py")) if module_name(path) not in PLACELESS]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path):
    name = module_name(path)
    assert name in ORDER, f"{name} has no place in the order"
    later = [other for other in imported(path) if ORDER.index(other) >= ORDER.index(name)]
    assert later == []


@pytest.mark.parametrize("page", sorted(PLACELESS - {"__init__"}))
def test_the_page_of_a_wing_says_what_it_is_for_and_nothing_more(page):
    (statement,) = ast.parse((ROOT / page.replace(".", "/") / "__init__.py").read_text()).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Constant)


@pytest.mark.parametrize("name", WINGS["rule"])
def test_the_rule_knows_nothing_of_transformers_files_or_processes(name):
    text = (ROOT / "rule" / f"{name}.py").read_text()
    modules = {
        part
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for part in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    library = {"__future__", "collections.abc", "dataclasses", "hashlib", "math", "typing", "torch"}
    assert {module for module in modules if not module.startswith("hf_srigl.rule.")} <= library
    assert "open(" not in text


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
    from hf_srigl.rule.topology import update_mask

    for thing in [*(getattr(hf_srigl, name) for name in hf_srigl.__all__), update_mask]:
        assert ">>>" in thing.__doc__ or thing is hf_srigl.SRigLTrainerMixin, thing
