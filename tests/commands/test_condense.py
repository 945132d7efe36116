"""`hf-srigl condense` and `densify`: what is written is what the library would write, nothing is lost without a word."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from rounding import assert_close_path, path_terms
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigLConfig, sparsify, sparsity_report
from hf_srigl.cli import main
from hf_srigl.commands import condense
from hf_srigl.model.attachment import condensed_layers, config_of
from hf_srigl.model.masks import condense_under, condense_zeros, mask_of_nonzeros

AUTO = AutoModelForSequenceClassification
QUERY = "bert.encoder.layer.0.attention.self.query"
INPUT = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}


@pytest.fixture
def dense(tmp_path):
    """A dense checkpoint with what usually lies beside weights, and some things that must stay behind."""
    folder = tmp_path / "dense"
    tiny_bert().save_pretrained(folder)
    for name in ("tokenizer.json", "vocab.txt", "preprocessor_config.json", "chat_template.jinja", "LICENSE"):
        (folder / name).write_text("{}" if name.endswith("json") else f"this is {name}")
    (folder / "README.md").write_text("# A model\n")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "tokenizer.json").write_text("{}")
    for name in ("trainer_state.json", "optimizer.pt", ".gitattributes"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def fails(capsys):
    def run(*argv):
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("hf-srigl: ")
        return err

    return run


@pytest.fixture
def done(capsys):
    """Runs a command with --json and returns what it printed."""

    def run(*argv):
        capsys.readouterr()
        assert main([*map(str, argv), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return run


def pruned_bert(share=0.9, seed=0):
    """A BERT whose encoder weights are 0 at random places, so that rows differ; one neuron has nothing left."""
    model = tiny_bert(seed)
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "encoder" in name:
            module.weight.data[torch.rand(module.weight.shape, generator=generator) < share] = 0
    model.get_submodule(QUERY).weight.data[3] = 0
    return model


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left)


# --- condense by magnitude -------------------------------------------------------------------------------------------


def test_condense_writes_what_sparsify_and_save_pretrained_would(dense, tmp_path, done):
    facts = done("condense", dense, tmp_path / "out", "--sparsity", "0.75")
    expected = sparsify(tiny_bert(), SRigLConfig(sparsity=0.75))
    expected.save_pretrained(tmp_path / "expected")
    assert_same(weights(tmp_path / "out"), weights(tmp_path / "expected"))
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("out", "expected")]
    assert configs[0] == configs[1]
    assert facts["config"] == SRigLConfig(sparsity=0.75).to_dict()
    assert facts["report"] == json.loads(json.dumps(sparsity_report(expected).to_dict()))
    assert (facts["source"], facts["path"], facts["method"]) == (str(dense), str(tmp_path / "out"), "magnitude")
    assert facts["file_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size < facts["dense_file_bytes"]
    assert done("inspect", tmp_path / "out")["sound"]


def test_condense_keeps_what_lies_beside_the_weights(dense, tmp_path, done):
    facts = done("condense", dense, tmp_path / "out")
    copied = ["1_Pooling/config.json", "LICENSE", "README.md", "chat_template.jinja", "preprocessor_config.json"]
    assert facts["copied"] == [*copied, "tokenizer.json", "vocab.txt"]
    assert facts["not_copied"] == ["optimizer.pt"]
    assert (tmp_path / "out" / "vocab.txt").read_text() == "this is vocab.txt"
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- srigl\n- sparse\n---\n# A model\n")
    assert "import hf_srigl" in card
    for name in ("trainer_state.json", "optimizer.pt", "checkpoint-5", ".gitattributes"):
        assert not (tmp_path / "out" / name).exists()


def test_condense_says_what_it_did(dense, tmp_path, capsys):
    assert main(["condense", str(dense), str(tmp_path / "out"), "--sparsity", "0.75"]) == 0
    out, err = capsys.readouterr()
    assert err == "", "no bars where nobody watches"
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["dense", "condensed", "copied", "not"]
    assert "BertForSequenceClassification, float32" in lines[0]
    assert str(sparsity_report(AUTO.from_pretrained(tmp_path / "out"))) in out


def test_progress_is_shown_where_somebody_watches(dense, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["condense", str(dense), str(tmp_path / "out")]) == 0
    assert "Condensing layers: 100%" in capsys.readouterr().err
    assert main(["densify", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert "Expanding layers: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sparsity", "0.5"], {"sparsity": 0.5}),
        (["--distribution", "erk"], {"distribution": "erk"}),
        (["--target-modules", "query", "key"], {"target_modules": ["query", "key"]}),
        (["--target-modules", ".*output.dense"], {"target_modules": ".*output.dense"}),
        (["--exclude-modules", "pooler.dense"], {"exclude_modules": ["pooler.dense"]}),
        (["--never-ablate", "intermediate.dense"], {"never_ablate": ["intermediate.dense"]}),
    ],
)
def test_condense_options_are_those_of_the_configuration(dense, tmp_path, done, options, expected):
    facts = done("condense", dense, tmp_path / "out", *options)
    config = SRigLConfig(**expected)
    assert facts["config"] == config.to_dict() != SRigLConfig().to_dict()
    model = sparsify(tiny_bert(), config)
    model.save_pretrained(tmp_path / "expected")
    assert_same(weights(tmp_path / "out"), weights(tmp_path / "expected"))


def test_condense_takes_a_configuration_file_and_options_win(dense, tmp_path, done, fails):
    file = tmp_path / "srigl.json"
    SRigLConfig(sparsity=0.5, update_every=7, init="random", gamma_sal=0.9).to_json_file(file)
    facts = done("condense", dense, tmp_path / "out", "--config", file, "--sparsity", "0.75")
    assert facts["config"] == SRigLConfig(sparsity=0.75, update_every=7, gamma_sal=0.9).to_dict()
    assert "cannot read" in fails("condense", dense, tmp_path / "no", "--config", tmp_path / "nowhere.json")
    file.write_text('{"sparsty": 0.5}')
    assert "did you mean 'sparsity'" in fails("condense", dense, tmp_path / "no", "--config", file)
    file.write_text("{")
    assert fails("condense", dense, tmp_path / "no", "--config", file)


def test_condense_keeps_the_precision(tmp_path, done):
    tiny_bert().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    assert done("condense", tmp_path / "dense", tmp_path / "out")["dtype"] == "bfloat16"
    assert weights(tmp_path / "out")[f"{QUERY}.weight"].dtype == torch.bfloat16


def test_condense_believes_the_weights_and_not_a_config_that_would_round_them(dense, tmp_path, done):
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert done("condense", dense, tmp_path / "out")["dtype"] == "float32"
    sparsify(tiny_bert(), SRigLConfig()).save_pretrained(tmp_path / "expected")
    assert_same(weights(tmp_path / "out"), weights(tmp_path / "expected"))


def test_condense_reads_shards_and_pickled_weights(dense, tmp_path, done):
    tiny_bert().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    facts = done("condense", tmp_path / "shards", tmp_path / "from_shards")
    assert facts["copied"] == facts["not_copied"] == []
    done("condense", dense, tmp_path / "out")
    assert_same(weights(tmp_path / "from_shards"), weights(tmp_path / "out"))
    torch.save(weights(dense), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    facts = done("condense", dense, tmp_path / "from_bin")
    assert facts["dense_file_bytes"] == (dense / "pytorch_model.bin").stat().st_size
    assert_same(weights(tmp_path / "from_bin"), weights(tmp_path / "out"))


def test_condense_tells_of_tensors_that_the_architecture_does_not_have(dense, tmp_path, done, capsys):
    save_file(weights(dense) | {"cls.extra": torch.ones(2)}, dense / "model.safetensors", metadata={"format": "pt"})
    assert done("condense", dense, tmp_path / "out")["unused_tensors"] == ["cls.extra"]
    assert main(["condense", str(dense), str(tmp_path / "out2")]) == 0
    assert "1 tensor that BertForSequenceClassification does not have: cls.extra" in capsys.readouterr().out


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_what_condense_refuses(dense, tmp_path, fails):
    out = tmp_path / "out"
    assert "is not empty" in fails("condense", dense, dense)
    (tmp_path / "file").write_text("")
    assert "is a file" in fails("condense", dense, tmp_path / "file")
    assert "cannot write to" in fails("condense", dense, tmp_path / "file" / "out")
    assert f"there is no {tmp_path / 'nowhere'}" in fails("condense", tmp_path / "nowhere", out)
    assert "config.json" in fails("condense", tmp_path, out)
    assert "target_modules names 'querx'" in fails("condense", dense, out, "--target-modules", "query", "querx")
    edit_config(dense, architectures=["MyOwnBert"])
    assert "MyOwnBert, which transformers" in fails("condense", dense, out)
    edit_config(dense, architectures=None)
    assert 'would lose 2 tensors such as classifier.bias: add "architectures"' in fails("condense", dense, out)
    edit_config(dense, architectures=["BertForMaskedLM"])
    assert "lacks weights of its BertForMaskedLM: cls.predictions" in fails("condense", dense, out)
    edit_config(dense, quantization_config={"quant_method": "gptq"})
    assert "is quantized ('gptq')" in fails("condense", dense, out)
    assert not out.exists()


def test_condense_refuses_what_is_condensed_already(dense, tmp_path, done, fails):
    done("condense", dense, tmp_path / "out")
    assert "is condensed already; to condense it anew: hf-srigl densify" in fails(
        "condense", tmp_path / "out", tmp_path / "twice"
    )


def test_an_empty_folder_is_free_and_missing_parents_are_made(dense, tmp_path, done):
    (tmp_path / "empty").mkdir()
    done("condense", dense, tmp_path / "empty")
    done("condense", dense, tmp_path / "a" / "b" / "out")
    assert_same(weights(tmp_path / "empty"), weights(tmp_path / "a" / "b" / "out"))


def test_a_failed_write_leaves_nothing_behind(dense, tmp_path, fails, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(condense, "copy_companions", full)
    before = sorted(tmp_path.iterdir())
    assert "No space left on device" in fails("condense", dense, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "argv",
    [
        ["x"],
        ["x", "y", "--sparsity", "1.5"],
        ["x", "y", "--from-zeros", "--sparsity", ".5"],
        ["x", "y", "--from-zeros", "--distribution", "erk"],
    ],
)
def test_condense_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["condense", *argv])
    assert stopped.value.code == 2


# --- condense by the zeros that are there ----------------------------------------------------------------------------


def test_from_zeros_computes_the_same(tmp_path, done):
    model = pruned_bert()
    model.save_pretrained(tmp_path / "dense")
    facts = done("condense", tmp_path / "dense", tmp_path / "out", "--from-zeros")
    loaded = AUTO.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert_close_path(loaded(**INPUT).logits, model.eval()(**INPUT).logits, terms=path_terms(model))
    for name, layer in condensed_layers(loaded).items():
        weight = model.get_submodule(name).weight
        assert torch.equal(layer.to_dense(), weight), "not a weight is lost"
        assert layer.fan_in == (weight != 0).sum(1).max(), "the longest row"
        assert torch.equal(layer.active, (weight != 0).any(1)), "rows of zeros are ablated"
    assert not loaded.get_submodule(QUERY).active[3]
    assert facts["method"] == "zeros"
    by_name = {row["name"]: row for row in facts["zeros"]}
    assert by_name[QUERY]["empty"] >= 1
    assert by_name["bert.pooler.dense"]["condensed"] is False, "it has no zeros"
    assert set(condensed_layers(loaded)) == {name for name, row in by_name.items() if row["condensed"]}
    stored = 1 - sum(r["slots"] for r in by_name.values() if r["condensed"]) / sum(
        r["neurons"] * r["inputs"] for r in by_name.values() if r["condensed"]
    )
    assert config_of(loaded).sparsity == pytest.approx(stored, abs=1e-6)
    assert facts["report"]["target_sparsity"] == pytest.approx(stored)


def test_from_zeros_says_what_it_found(tmp_path, capsys):
    pruned_bert().save_pretrained(tmp_path / "dense")
    assert main(["condense", str(tmp_path / "dense"), str(tmp_path / "out"), "--from-zeros"]) == 0
    out = capsys.readouterr().out
    assert "12 layers condensed: 8" in out
    assert "rows of 12 of them differ in length and are filled up with zeros; most in bert.encoder" in out
    assert "nothing but zeros became ablated" in out
    assert "1 layer left dense, since the condensed form would not be smaller: bert.pooler.dense (up to 32" in out


def test_from_zeros_of_a_densified_model_gives_it_back(dense, tmp_path, done):
    done("condense", dense, tmp_path / "sparse", "--sparsity", "0.75")
    done("densify", tmp_path / "sparse", tmp_path / "zeros")
    facts = done("condense", tmp_path / "zeros", tmp_path / "again", "--from-zeros")
    assert_same(weights(tmp_path / "sparse"), weights(tmp_path / "again"))
    assert facts["config"]["sparsity"] == 0.75


def test_from_zeros_needs_zeros(dense, tmp_path, fails):
    said = fails("condense", dense, tmp_path / "out", "--from-zeros")
    assert "no layer has zeros enough to become smaller" in said
    assert "32 non-zeros of 32" in said


def test_from_zeros_goes_by_the_targets(tmp_path, done):
    pruned_bert().save_pretrained(tmp_path / "dense")
    facts = done("condense", tmp_path / "dense", tmp_path / "out", "--from-zeros", "--target-modules", "key", "value")
    assert [row["name"].rsplit(".", 1)[-1] for row in facts["report"]["rows"]] == ["key", "value"] * 2


def test_a_model_condensed_from_zeros_trains_on(tmp_path):
    model = pruned_bert()
    condense_zeros(model, SRigLConfig(update_every=2))
    trainer = SparseTrainer(model=model, args=training_args(tmp_path), train_dataset=Toy())
    trainer.train()
    assert bool(model.get_submodule(QUERY).active.all()), "queries are never ablated: the first update revives them"


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 9), (16, 4)])
def test_the_mask_of_nonzeros_holds_them_all_with_one_fan_in(shape):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.4)
        mask, used = mask_of_nonzeros(weight), weight != 0
        assert bool((mask | ~used).all()), "no weight is left out"
        if bool(used.any()):
            assert torch.equal(mask.sum(1), used.sum(1).max() * used.any(1))
        else:
            assert mask.sum() == 1


def test_a_layer_of_nothing_but_zeros_is_condensed_too():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    model[0].weight.data.zero_()
    first, second = condense_zeros(model, SRigLConfig())
    assert (first.empty, first.most, first.condensed, second.condensed) == (4, 0, True, False)
    assert bool((model[0](torch.ones(1, 8)) == model[0].bias).all())


def test_masks_of_ones_own_are_checked():
    with pytest.raises(ValueError, match=r"layer 0: expected one fan-in for all active rows, got \[1, 2\]"):
        condense_under(nn.Sequential(nn.Linear(2, 2)), SRigLConfig(), lambda name, w: torch.ones(2, 2).tril().bool())


# --- densify ---------------------------------------------------------------------------------------------------------


def test_densify_gives_back_an_ordinary_checkpoint(dense, tmp_path, done):
    done("condense", dense, tmp_path / "sparse", "--sparsity", "0.75")
    facts = done("densify", tmp_path / "sparse", tmp_path / "again")
    plain, original = weights(tmp_path / "again"), weights(dense)
    assert {k: (v.shape, v.dtype) for k, v in plain.items()} == {k: (v.shape, v.dtype) for k, v in original.items()}
    kept = plain[f"{QUERY}.weight"] != 0
    assert kept.sum(1).unique().tolist() == [8]
    assert torch.equal(plain[f"{QUERY}.weight"][kept], original[f"{QUERY}.weight"][kept])
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert (tmp_path / "again" / "README.md").read_text() == "---\nlibrary_name: transformers\n---\n# A model\n"
    assert "vocab.txt" in facts["copied"]
    assert facts["condensed_file_bytes"] < facts["file_bytes"]


def test_densified_gpt2_loads_and_generates_without_hf_srigl(tmp_path, done):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    done("condense", tmp_path / "dense", tmp_path / "sparse", "--sparsity", "0.75")
    facts = done("densify", tmp_path / "sparse", tmp_path / "again")
    assert (facts["architecture"], facts["dtype"]) == ("GPT2LMHeadModel", "bfloat16")
    script = f"""
import sys
sys.modules["hf_srigl"] = None
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
import torch
model, info = AutoModelForCausalLM.from_pretrained({str(tmp_path / "again")!r}, dtype=torch.float32, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
save_file({{"logits": model(torch.arange(8)[None]).logits.detach()}}, {str(tmp_path / "logits")!r})
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        sparse = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse", dtype=torch.float32)
        expected = sparse(torch.arange(8)[None]).logits
    assert_close_path(load_file(tmp_path / "logits")["logits"], expected, terms=path_terms(sparse))


def test_what_densify_refuses(dense, tmp_path, done, fails):
    assert "not a condensed checkpoint but a dense one" in fails("densify", dense, tmp_path / "out")
    done("condense", dense, tmp_path / "sparse")
    assert "is not empty" in fails("densify", tmp_path / "sparse", tmp_path / "sparse")
    (tmp_path / "sparse" / "model.safetensors").write_bytes(b"short")
    assert "not a whole safetensors file" in fails("densify", tmp_path / "sparse", tmp_path / "out")
    shutil.rmtree(tmp_path / "sparse")
    assert "there is no" in fails("densify", tmp_path / "sparse", tmp_path / "out")


def test_calibrating_on_text(tmp_path, done, fails):
    tokenizers = pytest.importorskip("tokenizers")
    words = [f"w{i}" for i in range(90)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(["[UNK]", "[PAD]", *words])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    dense = tmp_path / "dense"
    tiny_bert().save_pretrained(dense)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(words[i : i + 5]) for i in range(40)) + "\n")
    assert "needs a tokenizer" in fails("condense", dense, tmp_path / "no", "--calibrate", text)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(dense)
    facts = done("condense", dense, tmp_path / "wanda", "--sparsity", "0.7", "--calibrate", text)
    assert facts["method"] == facts["config"]["init"] == "wanda"
    done("condense", dense, tmp_path / "magnitude", "--sparsity", "0.7")
    masks = [AUTO.from_pretrained(tmp_path / name).get_submodule(QUERY).mask() for name in ("wanda", "magnitude")]
    assert masks[0].sum() == masks[1].sum()
    assert not torch.equal(*masks)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert "has no text to calibrate on" in fails("condense", dense, tmp_path / "no", "--calibrate", empty)
    assert "cannot read" in fails("condense", dense, tmp_path / "no", "--calibrate", tmp_path / "absent.txt")
    with pytest.raises(SystemExit):
        main(["condense", str(dense), str(tmp_path / "no"), "--from-zeros", "--calibrate", str(text)])


def test_a_ramp_in_the_configuration_does_not_make_one_shot_dense(tmp_path, dense, done):
    SRigLConfig.for_finetuning(0.7).to_json_file(tmp_path / "ramp.json")
    facts = done("condense", dense, tmp_path / "out", "--config", tmp_path / "ramp.json")
    assert facts["report"]["target_sparsity"] == pytest.approx(0.7, abs=0.02)
