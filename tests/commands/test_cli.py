"""The command line: what is printed, exit codes, and one clear sentence for what can be expected to fail."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, ResNetConfig, ResNetModel
from transformers.utils import logging

from conftest import tiny_bert
from hf_srigl import SRigLConfig, sparsify, sparsity_report
from hf_srigl.cli import main
from hf_srigl.commands import checkpoints, demo
from hf_srigl.model.attachment import config_of


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "sparse"
    sparsify(tiny_bert(), SRigLConfig(sparsity=0.75, never_ablate=["query"], update_every=7)).save_pretrained(path)
    return path


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail with exit code 1 and one line on stderr, and returns that line."""

    def run(*argv):
        capsys.readouterr()  # what preparing the test printed
        assert main([str(argument) for argument in argv]) == 1
        out, err = capsys.readouterr()
        assert out == "", "nothing on stdout"
        assert err.startswith("hf-srigl: ")
        assert err.count("\n") == 1, "one line"
        assert "Traceback" not in err
        return err

    return run


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"hf_srigl {importlib.metadata.version('hf_srigl')}\n"


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_prints_configuration_and_report(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    size = (folder / "model.safetensors").stat().st_size / 1e6
    assert lines[0] == f"{folder}: BertForSequenceClassification, condensed, float32, {size:.2f} MB in 1 file"
    assert lines[1] == "sound: 13 condensed layers valid, no weight missing, every value finite"
    options = dict(line.split(maxsplit=1) for line in lines[3 : lines.index("", 3)])
    assert list(options) == list(SRigLConfig().to_dict())
    assert (options["sparsity"], options["update_every"], options["target_modules"]) == ("0.75", "7", "-")
    assert "query" in options["never_ablate"]
    assert str(sparsity_report(AutoModelForSequenceClassification.from_pretrained(folder))) in out


def test_inspect_json_is_nothing_but_json(folder, capsys):
    assert main(["inspect", "--json", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    facts = json.loads(out)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (facts["path"], facts["architecture"]) == (str(folder), "BertForSequenceClassification")
    assert SRigLConfig.from_dict(facts["config"]) == config_of(model)
    assert facts["report"] == json.loads(json.dumps(sparsity_report(model).to_dict()))
    assert 0.7 < facts["report"]["target_sparsity"] < 0.8
    assert (facts["sound"], facts["dtype"], facts["unused_tensors"]) == (True, "float32", [])
    assert (facts["files"], facts["file_bytes"]) == (
        ["model.safetensors"], (folder / "model.safetensors").stat().st_size,
    )  # fmt: skip


def test_inspect_reads_the_stored_precision(tmp_path, capsys):
    sparsify(tiny_bert(), SRigLConfig(sparsity=0.75)).to(torch.bfloat16).save_pretrained(tmp_path)
    assert main(["inspect", "--json", str(tmp_path)]) == 0
    row = json.loads(capsys.readouterr().out)["report"]["rows"][0]
    assert row["dense_bytes"] == 2 * row["out_features"] * (row["in_features"] + 1)


def test_inspect_reads_the_committed_version_1(capsys):
    assert main(["inspect", str(Path(__file__).parents[1] / "data" / "condensed_v1")]) == 0
    assert "13/16" in capsys.readouterr().out


def test_inspect_leaves_the_settings_of_transformers_alone(folder):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        assert [main(["inspect", str(folder)]), main(["inspect", "nowhere"])] == [0, 1]
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()


def test_inspect_a_missing_path(tmp_path, fails):
    path = tmp_path / "nowhere"
    hint = "give the folder that save_pretrained wrote, or a model's name on the Hub"
    assert fails("inspect", path) == f"hf-srigl: there is no {path}; {hint}\n"


def test_inspect_a_file_or_an_empty_folder(folder, tmp_path, fails):
    assert "not a checkpoint" in fails("inspect", folder / "model.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in fails("inspect", empty)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"quantization_config": 3}', "\xff"])
def test_inspect_what_is_no_configuration(folder, fails, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "is not a model configuration" in fails("inspect", folder)


def test_inspect_says_what_a_dense_checkpoint_is(tmp_path, capsys):
    model = tiny_bert()
    model.save_pretrained(tmp_path / "dense")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "dense")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'dense'}: BertForSequenceClassification, dense, float32, ")
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32
    share = weights / model.num_parameters()
    assert second.startswith(
        f"{model.num_parameters():,} parameters, {share:.1%} of them in 13 linear layers that could"
    )
    assert "hf-srigl condense" in second
    assert "for_finetuning" in second
    assert main(["inspect", str(tmp_path / "dense"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["condensed"], facts["could_be_sparse"]["weights"]) == (False, weights)
    assert len(facts["could_be_sparse"]["layers"]) == 13


def test_inspect_says_that_nothing_of_a_dense_checkpoint_could_become_sparse(tmp_path, capsys):
    ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])).save_pretrained(tmp_path / "dense")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "dense")]) == 0
    assert "none of its layers could become sparse: no layer to make sparse" in capsys.readouterr().out


def test_inspect_a_foreign_checkpoint(folder, fails):
    edit_config(folder, lambda config: config["quantization_config"].update(quant_method="gptq"))
    assert "'gptq'" in fails("inspect", folder)


def test_inspect_without_weights(folder, fails):
    (folder / "model.safetensors").unlink()
    assert str(folder) in fails("inspect", folder)


def test_inspect_a_broken_download(folder, fails):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "not a whole safetensors file" in fails("inspect", folder)


def test_inspect_a_bad_topology(folder, fails):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.indices"))
    tensors[name][0] = 99
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = fails("inspect", folder)
    assert name.removesuffix(".indices") in said
    assert "found 99" in said


def test_inspect_a_newer_format(folder, fails):
    edit_config(folder, lambda config: config["quantization_config"].update(format_version=2))
    assert "upgrade" in fails("inspect", folder)


def test_inspect_does_not_report_on_weights_that_are_not_there(folder, fails):
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights of its BertForSequenceClassification: classifier.weight" in fails("inspect", folder)


def test_inspect_finds_values_that_are_not_finite(folder, fails):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"][0, 1] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "classifier.weight holds NaN or inf in 1 place" in fails("inspect", folder)


def test_inspect_names_tensors_that_nothing_reads(folder, capsys):
    save_file(load_file(folder / "model.safetensors") | {"more.bias": torch.ones(1)}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    assert main(["inspect", str(folder)]) == 0
    assert "1 tensor that no layer reads, first more.bias" in capsys.readouterr().out


def test_inspect_counts_all_shards(folder, tmp_path, capsys):
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "s", max_shard_size="20KB")
    assert main(["inspect", "--json", str(tmp_path / "s")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["files"]) > 1
    assert facts["file_bytes"] == sum((tmp_path / "s" / name).stat().st_size for name in facts["files"])


def test_inspect_an_architecture_unknown_to_transformers(folder, capsys):
    edit_config(folder, lambda config: config.update(architectures=["MyOwnBert"]))
    assert main(["inspect", str(folder)]) == 0
    assert "BertModel, condensed" in capsys.readouterr().out


def test_inspect_survives_a_moved_folder(folder, tmp_path, capsys):
    moved = shutil.move(folder, tmp_path / "with spaces")
    assert main(["inspect", str(moved)]) == 0


# --- names on the Hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, folder):
    """A Hub with one model, `me/sparse`, that hands out what is asked for; the list of what was asked."""
    asked = []

    def snapshot_download(repo_id, *, allow_patterns, ignore_patterns):
        asked.append((repo_id, allow_patterns, ignore_patterns))
        if repo_id != "me/sparse":
            raise RepositoryNotFoundError("404", response=Mock(headers={}, status_code=404))
        copy = folder.parent / f"snapshot{len(asked)}"
        files = filter_repo_objects(
            [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()],
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
        )
        for file in files:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, copy / file)
        return str(copy)

    monkeypatch.setattr(checkpoints, "snapshot_download", snapshot_download)
    return asked


def test_inspect_downloads_weights_and_config_and_no_more(hub, folder, capsys, monkeypatch):
    for name in ("tokenizer.json", "tf_model.h5", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    assert main(["inspect", "me/sparse"]) == 0
    assert capsys.readouterr().out.startswith("me/sparse: BertForSequenceClassification, condensed")
    assert sorted(file.name for file in (folder.parent / "snapshot1").iterdir()) == ["config.json", "model.safetensors"]


def test_densify_downloads_what_lies_beside_the_weights(hub, folder, tmp_path, capsys):
    for name in ("tokenizer.json", "LICENSE", "tf_model.h5", "onnx/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    assert main(["densify", "me/sparse", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["copied"] == ["LICENSE", "tokenizer.json"]
    assert not (tmp_path / "out" / "tf_model.h5").exists()
    assert len(hub) == 1


def test_condense_downloads_pickled_weights_only_if_there_are_no_others(hub, folder, tmp_path, capsys):
    shutil.rmtree(folder)
    tiny_bert().save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert main(["condense", "me/sparse", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "snapshot1" / "pytorch_model.bin").exists()
    (folder / "model.safetensors").unlink()
    assert main(["condense", "me/sparse", str(tmp_path / "out2")]) == 0
    assert [len(asked[1]) for asked in hub] == [len(hub[0][1]), len(hub[0][1]), len(hub[0][1]) + 1]
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(
        tmp_path / "out2" / "model.safetensors"
    ).keys()  # fmt: skip


def test_a_folder_goes_before_a_name_on_the_hub(hub, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    shutil.copytree(folder, tmp_path / "me" / "sparse")
    assert main(["inspect", "me/sparse"]) == 0
    assert hub == []


def test_a_model_the_hub_does_not_have(hub, fails):
    assert fails("inspect", "me/nothing") == (
        "hf-srigl: there is no folder me/nothing here, and the Hub has no model of this name, or a private one "
        "(log in with: hf auth login)\n"
    )


def test_a_name_no_hub_can_have_is_not_asked_for(hub, fails):
    for name in ("a/b/c", "../nothing", "./nothing", "/nothing", "~/nothing", "a b"):
        assert "there is no" in fails("inspect", name)
    assert hub == []


def test_offline_and_not_in_the_cache(fails, monkeypatch):
    said = fails("inspect", "me/sparse")  # the real huggingface_hub; the suite is offline
    assert said == (
        "hf-srigl: there is no folder me/sparse here, and the Hub cannot be asked for a model of this name: there is no "
        "connection, or HF_HUB_OFFLINE is set\n"
    )
    assert "no name of a model on the Hub" in fails("inspect", "me/spa--rse")


@pytest.mark.parametrize(
    ("error", "expected"),
    [(GatedRepoError, "accept its terms"), (RevisionNotFoundError, "no model"), (HfHubHTTPError, "failed: 503 busy")],
)
def test_what_the_hub_may_answer(monkeypatch, fails, error, expected):
    def snapshot_download(*args, **kwargs):
        raise error("503 busy", response=Mock(headers={}, status_code=503))

    monkeypatch.setattr(checkpoints, "snapshot_download", snapshot_download)
    assert expected in fails("densify", "me/sparse", "out")
    assert not Path("out").exists()


# --- demo ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch):
    """What the demo is called with, instead of running it."""
    calls = []
    monkeypatch.setattr(demo, "run_demo", lambda output, **options: calls.append((output, options)))
    return calls


def test_demo_options_reach_the_demo(called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    assert main(["demo", "--output", "a/b", "--max-steps", "7", "--sparsity", "0.5", "--seed", "3"]) == 0
    assert main(["demo", "--epochs", "0.5"]) == 0
    default = {"epochs": 8, "max_steps": None, "sparsity": 0.9, "seed": 0}
    assert called == [
        (Path("demo_output"), default),
        (Path("a/b"), default | {"max_steps": 7, "sparsity": 0.5, "seed": 3}),
        (Path("demo_output"), default | {"epochs": 0.5}),
    ]
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--sparsity", "1"], "expected a number in [0, 1), got '1'"),
        (["--sparsity", "nan"], "expected a number in [0, 1)"),
        (["--epochs", "0"], "expected a number of epochs above 0"),
        (["--epochs", "inf"], "expected a number of epochs above 0"),
        (["--max-steps", "2.5"], "expected a whole number of steps"),
        (["--max-steps", "0"], "expected a whole number of steps"),
        (["--epochs", "1", "--max-steps", "1"], "not allowed with"),
        (["--seed", "x"], "invalid int value"),
    ],
)
def test_demo_refuses_bad_options_before_it_starts(called, capsys, argv, expected):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *argv])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err
    assert called == []


def test_demo_where_it_cannot_write(called, tmp_path, fails):
    (tmp_path / "file").write_text("")
    assert f"cannot write to {tmp_path / 'file'}" in fails("demo", "--output", tmp_path / "file")
    assert called == []


def raising(error):
    def run_demo(*args, **kwargs):
        raise error

    return run_demo


def test_demo_without_its_packages(monkeypatch, tmp_path, fails):
    monkeypatch.setattr(demo, "run_demo", raising(ImportError("pip install '.[demo]'")))
    assert fails("demo", "--output", tmp_path) == "hf-srigl: pip install '.[demo]'\n"


def test_interrupted(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "run_demo", raising(KeyboardInterrupt()))
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("hf-srigl: interrupted\n")


def test_what_nobody_expects_is_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "run_demo", raising(RuntimeError("predictions differ")))
    with pytest.raises(RuntimeError, match="predictions differ"):
        main(["demo", "--output", str(tmp_path)])


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["demo", "inspect", "condense", "densify", "plot"]),
        (["demo"], ["--output", "--seed"]),
        (["inspect"], ["--json", "\nexamples:\n  hf-srigl inspect"]),
        (["condense"], ["--from-zeros", "--sparsity", "\n  hf-srigl condense my/pruned out --from-zeros\n"]),
        (["densify"], ["--json", "\nexamples:\n  hf-srigl densify"]),
        (["plot"], ["--training", "\nexamples:\n  hf-srigl plot"]),
    ],
)
def test_help(capsys, argv, words):
    with pytest.raises(SystemExit) as stopped:
        main([*argv, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words)
    assert max(map(len, out.split("examples:")[0].splitlines())) <= 120, "wrapped"


@pytest.mark.parametrize("argv", [[], ["dance"], ["inspect"]])
def test_wrong_usage(argv):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2


def test_the_installed_command_is_this_one():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="hf-srigl")
    assert command.load() is main
