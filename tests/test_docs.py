"""The documents: every Python block of the README runs, the commands named exist, links lead somewhere."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from transformers import PrinterCallback

import hf_srigl
from conftest import Toy, tiny_bert
from hf_srigl import cli
from hf_srigl.hub import SRigLQuantizationConfig

ROOT = Path(hf_srigl.__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # no accelerator here, and the README need not say so
def test_the_python_blocks_of_the_readme_run_in_order(tmp_path, monkeypatch):
    tiny_bert().save_pretrained(tmp_path / "bert")  # stands in for the model on the Hub
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PrinterCallback, "on_log", lambda *args, **kwargs: None)
    monkeypatch.setenv("TRAINER_REPORT_TO", "none")
    data = Toy()
    names = {"train_dataset": data, "dataloader": torch.utils.data.DataLoader(data, batch_size=32)}
    code = blocks(README, "python")
    assert len(code) >= 4
    for block in code:
        exec(block.replace("google-bert/bert-base-uncased", str(tmp_path / "bert")), names)
    assert type(names["model"].bert.pooler.dense) is torch.nn.Linear  # the last block ends with densify
    assert names["report"] is None or names["report"].dropped >= 0
    assert (tmp_path / "out" / "sparse" / "model.safetensors").is_file()


def test_the_json_of_the_format_page_is_valid():
    (example,) = blocks((ROOT / "docs" / "format.md").read_text(), "json")
    config = SRigLQuantizationConfig.from_dict(json.loads(example)["quantization_config"])
    assert config.srigl == hf_srigl.SRigLConfig()


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


def test_the_map_in_the_design_page_is_complete():
    design = (ROOT / "docs" / "design.md").read_text()
    files = [path.relative_to(ROOT / "hf_srigl") for path in (ROOT / "hf_srigl").rglob("*.py")]
    for file in files:
        assert str(file) in ("__init__.py",) or f"`{file}`" in design, file


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        assert "@@" not in page.read_text(), page
    assert os.path.isfile(ROOT / "LICENSE")
