"""The documents: every Python block of the README runs, the commands named exist, links lead somewhere."""

import doctest
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from test_structure import WINGS
from transformers import PrinterCallback, TrainingArguments

import hf_srigl
from conftest import Toy, tiny_bert
from hf_srigl import cli
from hf_srigl.files.quantizer import SRigLQuantizationConfig
from hf_srigl.model.attachment import config_of

ROOT = Path(hf_srigl.__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_IN_ORDER = ["choosing", "finetuning", "pretraining", "migrating", "troubleshooting", "scaling"]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs blocks of code in order, in an empty folder, with stand-ins for the reader's own things and for the Hub."""
    torch.manual_seed(0)
    tiny_bert().save_pretrained(tmp_path / "bert")
    hf_srigl.sparsify(tiny_bert(), hf_srigl.SRigLConfig()).save_pretrained(tmp_path / "condensed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PrinterCallback, "on_log", lambda *args, **kwargs: None)
    monkeypatch.setenv("TRAINER_REPORT_TO", "none")
    data = Toy()
    names = {
        "build_model": tiny_bert,
        "model": tiny_bert(),
        "args": TrainingArguments("out", max_steps=2, report_to="none"),
        "train_dataset": data,
        "eval_dataset": data,
        "dataloader": torch.utils.data.DataLoader(data, batch_size=32),
        "images": [{"pixel_values": torch.randn(1, 28, 28), "labels": i % 10} for i in range(64)],
    }
    stand_ins = {"google-bert/bert-base-uncased": tmp_path / "bert", "you/condensed": tmp_path / "condensed"}

    def execute(code):
        for block in code:
            for name, folder in stand_ins.items():
                block = block.replace(name, str(folder))
            exec(block, names)
        return names

    return execute


no_accelerator = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # here, and the pages need not say so


@no_accelerator
def test_the_python_blocks_of_the_readme_run_in_order(run, tmp_path):
    code = blocks(README, "python")
    assert len(code) == 3  # a pretrained model, from scratch, loading
    names = run(code)
    assert config_of(names["trainer"].model) == hf_srigl.SRigLConfig.for_finetuning(sparsity=0.8)
    assert hf_srigl.sparsity_report(names["pretrainer"].model).target_sparsity == pytest.approx(0.9, abs=0.02)
    assert type(names["model"].bert.pooler.dense) is torch.nn.Linear  # it ends with densify
    assert (tmp_path / "out" / "sparse" / "model.safetensors").is_file()


def test_the_readme_is_short_and_its_first_screen_says_what_sparsity_costs():
    lines = README.splitlines()
    assert len(lines) <= 120
    first = "\n".join(lines[:32])
    assert re.search(r"accuracy lost.*\| 2.1 points \| 4.5 points \|", first)
    assert "starts at dense memory" in first


@no_accelerator
def test_the_loops_of_the_page_on_using_it_update_on_optimizer_steps_only(run, capsys):
    names = run(blocks((ROOT / "docs" / "using.md").read_text(), "python"))
    assert names["srigl"].steps == len(names["dataloader"]) // 4
    assert " of the dense model's " in capsys.readouterr().out


@no_accelerator
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's call into transformers
@pytest.mark.parametrize("page", RUN_IN_ORDER)
def test_the_python_blocks_of_a_page_run_in_order(page, run):
    code = blocks((ROOT / "docs" / f"{page}.md").read_text(), "python")
    assert len(code) >= 2
    run(code)


def test_no_page_has_blocks_that_nobody_runs():
    """Pages not named above have only doctests, which are run here."""
    for page in PAGES:
        if page.stem not in {"README", "using", *RUN_IN_ORDER}:
            for block in blocks(page.read_text(), "python"):
                assert block.startswith(">>>"), page
            failures, _ = doctest.testfile(str(page), module_relative=False)
            assert failures == 0, page


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PrinterCallback, "on_log", lambda *args, **kwargs: None)
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])  # none that may be out of date
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["metrics"]["eval_accuracy"] > 0.9
    assert names["same"]
    assert len(names["updates"]) == 11
    assert names["report"].target_sparsity == pytest.approx(0.8, abs=0.01)


def test_the_json_of_the_format_page_is_valid():
    (example,) = blocks((ROOT / "docs" / "format.md").read_text(), "json")
    config = SRigLQuantizationConfig.from_dict(json.loads(example)["quantization_config"])
    assert config.srigl == hf_srigl.SRigLConfig()


def test_one_set_of_learning_rates_for_minilm():
    """What the study used is what the page, the settings file and the commands of the examples say."""
    (row,) = re.findall(
        r"^\| MiniLM-L6, measured \|(.*)\|$", (ROOT / "docs" / "finetuning.md").read_text(), re.MULTILINE
    )
    dense, at_80, at_90 = map(float, row.split("|"))
    used = {}
    for task in ("trec", "movies"):
        for line in (ROOT / "benchmarks" / "accuracy" / "results" / f"{task}.jsonl").read_text().splitlines():
            run = json.loads(line)
            if run["method"] in ("dense", "ramp-erk-hidden-100"):
                used.setdefault(run["sparsity"], set()).add(run["lr"])
    assert (used[0.0], used[0.7], used[0.8], used[0.9]) == ({dense}, {at_80}, {at_80}, {at_90})
    settings = yaml.safe_load((ROOT / "examples" / "configs" / "glue.yaml").read_text())
    assert (settings["sparsity"], settings["learning_rate"]) == (0.8, at_80)
    commands = "".join(blocks((ROOT / "examples" / "README.md").read_text(), "bash")).replace("\\\n", " ").splitlines()
    glue = [line for line in commands if "glue.yaml" in line and "data/minilm" in line]
    rates = [float(rate) for line in glue for rate in re.findall(r"--learning_rate (\S+)", line)]
    assert rates == [dense]  # of the command with --dense; the others leave the settings file's


def test_the_commands_of_the_readme_exist():
    (commands,) = blocks(README, "bash")
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", commands, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in [*targets, *re.findall(r"`make (\w+)`", README)]:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_subcommands_named_on_a_page_exist(page):
    known = {command.__name__.rsplit(".", 1)[-1] for command in cli.COMMANDS}
    assert set(re.findall(r"hf-srigl ([a-z]+)", page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_file_names_lead_somewhere(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    for link in links:
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:hf_srigl|tests|docs|benchmarks|examples)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_picture_of_the_wings_is_the_house():
    picture = blocks((ROOT / "docs" / "design.md").read_text(), "")[0]
    drawn = re.findall(r"^  ([a-z]+)(?:/|\.py)", picture, flags=re.MULTILINE)
    assert drawn[::-1] == [*WINGS[""], *(wing for wing in WINGS if wing)]
    assert re.findall(r"^    ([a-z]+)/", picture, flags=re.MULTILINE) == ["cpu", "cuda"]


def test_surprises_name_scripts_and_tests_that_exist():
    page = (ROOT / "docs" / "surprises.md").read_text()
    named = set(re.findall(r"`([a-z0-9-]+-[a-z0-9-]+)`", page))
    scripts = {path.stem for path in (ROOT / "findings").glob("*.sh")}
    assert named == scripts  # each has its row
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in tests, name
    for path in (ROOT / "findings").glob("*.sh"):
        head = path.read_text().split("set -euo pipefail")[0]
        for part in ("# Guess before running:", "# Seen:", "Seen 20"):
            assert part in head, (path.name, part)


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        assert "@@" not in page.read_text(), page
    assert os.path.isfile(ROOT / "LICENSE")
