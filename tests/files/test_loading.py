"""What must never load silently wrong: damaged files, foreign files, versions; and what goes to the Hub."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers as hf
from huggingface_hub import ModelCard
from rounding import assert_close_path, path_terms
from safetensors.torch import load_file, save_file
from torch import nn
from zoo import BY_NAME, CONFIG, assert_same_tensors, condensed, expand, run, trained

import hf_srigl
from hf_srigl import SparseTrainer, SRigLConfig, densify, install, sparsify, sparsity_report
from hf_srigl.model.attachment import config_of

AUTO = hf.AutoModelForSequenceClassification
V1 = Path(__file__).parents[1] / "data" / "condensed_v1"
LAYER = "bert.encoder.layer.0.intermediate.dense"  # (16, 8), fan-in 2, 13 of 16 neurons active, 6 slots unused
K, N, BUDGET, USED = 8, 16, 32, 26


@pytest.fixture
def folder(tmp_path):
    """A copy of the committed checkpoint, to be damaged."""
    return Path(shutil.copytree(V1, tmp_path / "checkpoint"))


def change_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def change_tensors(folder, change):
    """`change` gets name -> tensor of the whole file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def says(error, *words):
    """The message holds all of these, in any order."""
    for word in words:
        assert str(word) in str(error.value), f"{word!r} is not in: {error.value}"


# --- version 1 loads for ever ----------------------------------------------------------------------------------------


def test_the_committed_version_1_checkpoint_loads_and_computes_what_it_did():
    model, info = AUTO.from_pretrained(V1, output_loading_info=True)
    assert {key: len(value) for key, value in info.items() if len(value)} == {}
    expected = json.loads((V1 / "expected.json").read_text())
    inputs = {name: torch.tensor(expected[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**inputs).logits
    assert_close_path(logits, torch.tensor(expected["logits"]), terms=path_terms(model))
    layer = model.get_submodule(LAYER)
    assert repr(layer) == "CondensedLinear(in_features=8, out_features=16, bias=True, fan_in=2, active=13/16)"
    assert (int((layer.indices >= 0).sum()), layer.budget) == (USED, BUDGET)
    config = config_of(model)
    assert (config.sparsity, config.exclude_modules, config.gamma_sal, config.seed) == (0.75, ["pooler.dense"], 0.9, 7)


def test_the_committed_file_means_what_the_format_says():
    """Read with nothing but safetensors and the format's description."""
    tensors = load_file(V1 / "model.safetensors")
    model = AUTO.from_pretrained(V1)
    budgets = json.loads((V1 / "config.json").read_text())["quantization_config"]["layers"]
    assert budgets == {name: layer.budget for name, layer in condensed(model).items()}
    for name, layer in condensed(model).items():
        values, indices, active = (tensors[f"{name}.{tensor}"] for tensor in ("weight", "indices", "active"))
        assert (values.dtype, indices.dtype, active.dtype) == (torch.float32, torch.int16, torch.bool)
        assert values.shape == indices.shape == (budgets[name],)
        assert torch.equal(layer.to_dense(), expand(values, indices, active, layer.in_features))
    sizes = (V1 / "model.safetensors").stat().st_size, (V1 / "config.json").stat().st_size
    assert max(sizes) < 8000  # it is in the repository


def test_the_file_is_small_because_it_is_condensed(tmp_path):
    densify(AUTO.from_pretrained(V1)).save_pretrained(tmp_path)
    dense, ours = (load_file(path / "model.safetensors") for path in (tmp_path, V1))
    for name, budget in json.loads((V1 / "config.json").read_text())["quantization_config"]["layers"].items():
        assert budget == ours[f"{name}.weight"].numel() == dense[f"{name}.weight"].numel() // 4


# --- config.json -----------------------------------------------------------------------------------------------------


def drop(key):
    return lambda config: config.pop(key)


def set_to(key, value):
    return lambda config: config.update({key: value})


def set_budget(value, layer=LAYER):
    return lambda config: config["layers"].update({layer: value})


BAD_CONFIGS = {
    "newer format": (set_to("format_version", 2), ["format_version", "2", "1", "pip install"]),
    "format is no number": (set_to("format_version", "new"), ["format_version", "'new'", "1"]),
    "no format": (drop("format_version"), ["format_version"]),
    "unknown field": (set_to("sparsty", 0.5), ["sparsty", "sparsity"]),
    "bad field": (set_to("sparsity", 1.5), ["sparsity", "1.5"]),
    "no layers": (drop("layers"), ["layers"]),
    "layers is a list": (set_to("layers", [LAYER]), ["layers", "list"]),
    "layers is null": (set_to("layers", None), ["layers"]),
    "budget is no number": (set_budget("32"), [LAYER, "budget", "'32'"]),
    "budget is true": (set_budget(True), [LAYER, "budget", "True"]),
    "budget is 0": (set_budget(0), [LAYER, "budget", "0"]),
}


@pytest.mark.parametrize(("change", "words"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_bad_quantization_config(change, words, folder):
    change_config(folder, change)
    with pytest.raises(ValueError, match="quantization_config") as error:
        AUTO.from_pretrained(folder)
    says(error, *words)


BAD_BUDGETS = {
    "too small for this layer": (set_budget(N - 1), [LAYER, "budget", N - 1, N, N * K]),
    "too large for this layer": (set_budget(N * K + 1), [LAYER, "budget", N * K + 1, N * K]),
    "another than the file's": (set_budget(48), ["model.safetensors", LAYER, "weight", "(48,)", f"({BUDGET},)"]),
    "no linear layer": (
        set_budget(16, "bert.embeddings.LayerNorm"),
        ["bert.embeddings.LayerNorm", "nn.Linear", "LayerNorm"],
    ),
}


@pytest.mark.parametrize(("change", "words"), BAD_BUDGETS.values(), ids=BAD_BUDGETS.keys())
def test_budgets_that_do_not_fit_the_model(change, words, folder):
    change_config(folder, change)
    with pytest.raises(ValueError, match=re.escape(str(words[0]))) as error:
        AUTO.from_pretrained(folder)
    says(error, *words)


def test_a_layer_missing_from_the_list_of_layers(folder):
    """Its tensors are in the file, its budget is not: transformers finds that the shapes differ."""
    change_config(folder, lambda config: config["layers"].pop(LAYER))
    with pytest.raises(RuntimeError, match="mismatch"):
        AUTO.from_pretrained(folder)


# --- model.safetensors -----------------------------------------------------------------------------------------------


def edit(tensor, change):
    """`change` edits the tensor in place or returns another one."""

    def apply(tensors):
        old = tensors[f"{LAYER}.{tensor}"].clone()
        new = change(old)
        tensors[f"{LAYER}.{tensor}"] = old if new is None else new

    return apply


def put(slot, value):
    def change(tensor):
        tensor[slot] = value

    return change


def swap_first_two(indices):
    indices[:2] = indices[:2].flip(0)


def deactivate_one(active):
    active[int(active.nonzero()[0])] = False


BAD_TENSORS = {  # change, what the message must say besides file and layer
    "weight too short": (edit("weight", lambda t: t[:-1].clone()), ["tensor weight", f"({BUDGET},)", f"({BUDGET - 1},)"]),
    "indices too short": (edit("indices", lambda t: t[:-1].clone()), ["tensor indices", f"({BUDGET},)", f"({BUDGET - 1},)"]),
    "active too long": (
        edit("active", lambda t: torch.cat([t, t[:1]])), ["tensor active", f"({N},)", f"({N + 1},)"],
    ),
    "weight is a matrix": (edit("weight", lambda t: torch.zeros(N, K)), ["tensor weight", f"{BUDGET} condensed", "dense"]),
    "weight is whole numbers": (edit("weight", lambda t: t.int()), ["tensor weight", "floating", "int32"]),
    "index too large": (edit("indices", put(1, K)), ["indices", f"[0, {K})", f"found {K}"]),
    "index below -1": (edit("indices", put(0, -2)), ["indices", f"[0, {K})", "found -2"]),
    "index far out of bounds": (edit("indices", put(USED - 1, 32767)), ["indices", f"[0, {K})", "found 32767"]),
    "index repeated": (edit("indices", lambda t: put(1, t[0].item())(t)), ["indices", "differ", "slot 1 (row"]),
    "indices out of order": (edit("indices", swap_first_two), ["indices", "ascend", "slot 1 (row"]),
    "unused slot in the middle": (edit("indices", put(3, -1)), ["unused slots", "end"]),
    "unused slots at the start": (edit("indices", lambda t: t.flip(0).clone()), ["unused slots", "end"]),
    "more slots used than rows take": (edit("indices", put(USED, 0)), ["divide", f"{USED + 1} slots", "13 rows"]),
    "a row less than the slots": (edit("active", deactivate_one), ["divide", f"{USED} slots", "12 rows"]),
    "no row active": (edit("active", lambda t: t & False), ["active", "at least one", "none"]),
    "no slot used": (edit("indices", lambda t: t.fill_(-1)), ["0 slots", "13 rows"]),
    "indices are floats": (edit("indices", lambda t: t.float()), ["tensor indices", "int16", "float32"]),
    "indices are int64": (edit("indices", lambda t: t.long()), ["tensor indices", "int16", "int64"]),
    "indices are int32": (edit("indices", lambda t: t.int()), ["tensor indices", "int16", "int32"]),
    "active is numbers": (edit("active", lambda t: t.to(torch.uint8)), ["tensor active", "bool", "uint8"]),
    "no weight": (drop(f"{LAYER}.weight"), ["tensor weight", "missing"]),
    "no indices": (drop(f"{LAYER}.indices"), ["tensor indices", "missing"]),
    "no active": (drop(f"{LAYER}.active"), ["tensor active", "missing"]),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_damaged_tensors(change, words, folder):
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=re.escape(str(folder / "model.safetensors"))) as error:
        AUTO.from_pretrained(folder)
    says(error, LAYER, *words)


def test_rewriting_a_file_unchanged_does_no_harm(folder):
    """The control of the tests above."""
    change_tensors(folder, lambda tensors: None)
    assert_same_tensors(AUTO.from_pretrained(folder), AUTO.from_pretrained(V1))


def test_the_whole_layer_is_missing(folder):
    def remove(tensors):
        for name in [name for name in tensors if name.startswith(LAYER)]:
            del tensors[name]

    change_tensors(folder, remove)
    with pytest.raises(ValueError, match="missing") as error:
        AUTO.from_pretrained(folder)
    says(error, folder / "model.safetensors", LAYER, "tensor weight")


def test_a_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file") as error:
        AUTO.from_pretrained(folder)
    says(error, path, "again")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all, but a web page", b"\xff" * 64])
def test_a_file_that_is_no_safetensors(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file") as error:
        AUTO.from_pretrained(folder)
    says(error, folder / "model.safetensors")


def test_damage_in_one_of_several_files_names_that_file(folder, tmp_path):
    AUTO.from_pretrained(folder).save_pretrained(tmp_path / "sharded", max_shard_size="2KB")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    shard = tmp_path / "sharded" / index["weight_map"][f"{LAYER}.indices"]
    assert len(set(index["weight_map"].values())) > 1
    tensors = load_file(shard)
    tensors[f"{LAYER}.indices"][1] = K
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(str(shard))) as error:
        AUTO.from_pretrained(tmp_path / "sharded")
    says(error, LAYER, "indices", f"found {K}")

    shard.unlink()
    with pytest.raises((ValueError, OSError), match=re.escape(shard.name)):
        AUTO.from_pretrained(tmp_path / "sharded")


def test_damage_is_found_when_the_model_is_loaded_without_its_head(folder):
    change_tensors(folder, edit("indices", put(1, K)))
    with pytest.raises(ValueError, match=re.escape(str(folder / "model.safetensors"))) as error:
        hf.AutoModel.from_pretrained(folder)
    says(error, LAYER, f"found {K}")


def test_mismatched_sizes_are_not_ignored_for_condensed_layers(folder):
    """`ignore_mismatched_sizes` is for a new head; a condensed layer must not come out with placeholder values."""
    change_tensors(folder, edit("weight", lambda t: t[:-1].clone()))
    with pytest.raises(ValueError, match=LAYER):
        AUTO.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_only_safetensors_files_are_read(folder):
    """From anything else transformers would leave what is missing uninitialised, and nothing could be checked first."""
    tensors = load_file(folder / "model.safetensors")
    with pytest.raises(ValueError, match="safetensors") as error:
        hf.BertForSequenceClassification.from_pretrained(
            None, config=hf.AutoConfig.from_pretrained(folder), state_dict=tensors
        )
    says(error, "state_dict")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors") as error:
        AUTO.from_pretrained(folder)
    says(error, folder / "pytorch_model.bin")


def wide_bert():
    """One layer with more inputs than int16 can address."""
    sizes = {"vocab_size": 20, "hidden_size": 4, "num_hidden_layers": 1, "intermediate_size": 40_000}
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**sizes, num_attention_heads=1, max_position_embeddings=8))
    return sparsify(model.eval(), SRigLConfig(sparsity=0.999, target_modules=["output.dense"]))


def test_more_inputs_than_int16_can_address(tmp_path):
    model = wide_bert()
    layer = model.bert.encoder.layer[0].output.dense
    assert layer.indices.max() > 32767
    model.save_pretrained(tmp_path)
    loaded = AUTO.from_pretrained(tmp_path)
    assert loaded.bert.encoder.layer[0].output.dense.indices.dtype == torch.int32
    assert_same_tensors(loaded, model)


def test_indices_of_the_wrong_width_are_refused(tmp_path):
    """int16 where the format says int32 would overflow at the first topology update."""
    model, name = wide_bert(), "bert.encoder.layer.0.output.dense"
    model.save_pretrained(tmp_path)

    def narrow(tensors):
        fan_in = tensors[f"{name}.indices"].numel() // 4
        tensors[f"{name}.indices"] = torch.arange(fan_in, dtype=torch.int16).repeat(4)  # valid in all but the dtype

    change_tensors(tmp_path, narrow)
    with pytest.raises(ValueError, match=name) as error:
        AUTO.from_pretrained(tmp_path)
    says(error, tmp_path / "model.safetensors", "tensor indices", "int32", "int16")


# --- the wrong model -------------------------------------------------------------------------------------------------


def test_another_architecture_than_the_checkpoint_s(folder):
    with pytest.raises(ValueError, match="none of the checkpoint's condensed layers") as error:
        hf.RobertaForSequenceClassification.from_pretrained(folder, config=roberta_config(folder))
    says(error, "RobertaForSequenceClassification", "bert.encoder.layer.0", "class")


def roberta_config(folder):
    values = json.loads((folder / "config.json").read_text())
    return hf.RobertaConfig(**{k: v for k, v in values.items() if k != "model_type"})


def test_a_model_of_another_size(folder):
    with pytest.raises(ValueError, match=LAYER) as error:
        AUTO.from_pretrained(folder, intermediate_size=12)
    says(error, folder / "model.safetensors", "active", f"({N},)", "(12,)")


def test_a_configuration_for_a_checkpoint_that_is_condensed_already(folder):
    """It would have no effect, so it is refused."""
    with pytest.raises(ValueError, match="SRigLConfig"):
        AUTO.from_pretrained(folder, quantization_config=SRigLConfig(sparsity=0.5))


def test_a_model_with_fewer_layers_loads_what_it_has(tmp_path):
    """Dense checkpoints can be cut like this; condensed ones too, as every layer stands for itself."""
    config = hf.BertConfig(**BY_NAME["bert"].config().to_dict() | {"num_hidden_layers": 2})
    torch.manual_seed(0)
    model = sparsify(hf.BertForSequenceClassification(config), CONFIG)
    model.save_pretrained(tmp_path)
    cut = AUTO.from_pretrained(tmp_path, num_hidden_layers=1)
    assert len(condensed(cut)) == 7
    first = "bert.encoder.layer.0.output.dense"
    assert torch.equal(cut.get_submodule(first).weight, model.get_submodule(first).weight)


def test_a_model_with_more_layers_says_that_some_are_not_in_the_checkpoint(folder, caplog):
    """As with a dense checkpoint, transformers reports the missing layers; they are dense and random."""
    _, info = AUTO.from_pretrained(folder, num_hidden_layers=2, output_loading_info=True)
    assert any("layer.1" in name for name in info["missing_keys"])


# --- state dicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "words"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
@pytest.mark.parametrize("strict", [True, False])
def test_a_corrupted_state_dict_is_refused_and_changes_nothing(change, words, strict):
    model = AUTO.from_pretrained(V1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    state[f"{LAYER}.bias"] += 1
    change(state)
    with pytest.raises(RuntimeError, match=LAYER) as error:
        model.load_state_dict(state, strict=strict)
    says(error, *words)
    for name, tensor in model.get_submodule(LAYER).state_dict().items():
        assert torch.equal(tensor, before[f"{LAYER}.{name}"]), name


def test_a_sound_state_dict_is_accepted():
    """The control of the test above, with another topology than the model's own."""
    model, other = AUTO.from_pretrained(V1), AUTO.from_pretrained(V1)
    layer = other.get_submodule(LAYER)
    mask = layer.mask().roll(1, 1)
    layer.rewire(mask)
    assert not torch.equal(model.get_submodule(LAYER).indices, layer.indices)
    model.load_state_dict(other.state_dict())
    assert_same_tensors(model, other)
    assert torch.equal(model.get_submodule(LAYER).mask(), mask)


@pytest.mark.parametrize("strict", [True, False])
def test_a_dense_state_dict_gets_a_helpful_message(strict):
    model = AUTO.from_pretrained(V1)
    dense = densify(AUTO.from_pretrained(V1)).state_dict()
    with pytest.raises(RuntimeError, match="sparsify") as error:
        model.load_state_dict(dense, strict=strict)
    says(error, LAYER, "tensor weight", f"{BUDGET} condensed values", f"dense ({N}, {K})")
    assert_same_tensors(model, AUTO.from_pretrained(V1))


def test_a_condensed_state_dict_does_not_go_into_a_dense_model():
    dense = densify(AUTO.from_pretrained(V1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        dense.load_state_dict(AUTO.from_pretrained(V1).state_dict())


# --- without hf_srigl ------------------------------------------------------------------------------------------------

WITHOUT = """
import sys, warnings
from transformers import AutoModel, AutoModelForSequenceClassification
for auto in (AutoModelForSequenceClassification, AutoModel):
    assert "hf_srigl" not in sys.modules
    try:
        auto.from_pretrained(sys.argv[1])
    except Exception as error:
        print("RAISED", type(error).__name__, error)
    else:
        print("LOADED")
import hf_srigl
print("NOW", type(AutoModel.from_pretrained(sys.argv[1]).encoder.layer[0].output.dense).__name__)
"""


def test_without_hf_srigl_loading_fails_instead_of_giving_random_weights(tmp_path):
    root = str(Path(hf_srigl.__file__).parents[1])  # for the last line, where the package is not installed
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    (tmp_path / "script.py").write_text(WITHOUT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(V1)], capture_output=True, text=True, env=env, timeout=300
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["RAISED", "RAISED", "NOW"], done.stdout + done.stderr
    assert lines[0].startswith("RAISED RuntimeError")
    assert lines[2] == "NOW CondensedLinear"
    assert f"{LAYER}.weight" in done.stderr  # transformers' report names the layer and both shapes
    assert re.search(r"ckpt: torch.Size\(\[32\]\) vs model:\s*torch.Size\(\[16, 8\]\)", done.stderr)


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(monkeypatch):
    """What would have gone to the Hub: file name -> bytes. Nothing leaves the machine."""
    files = {}

    def create_repo(self, repo_id, **kwargs):
        repo_id = repo_id if "/" in repo_id else f"somebody/{repo_id}"
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    def upload_folder(self, *, folder_path, ignore_patterns=None, **kwargs):
        paths = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        for path in huggingface_hub.utils.filter_repo_objects(paths, ignore_patterns=ignore_patterns):
            files[path] = (Path(folder_path) / path).read_bytes()

    def refuse(self, *args, **kwargs):
        raise AssertionError("the test would have used the network")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    for name in ("create_branch", "upload_file", "model_info", "whoami"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, refuse)
    return files


def write(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_push_to_hub_of_a_model(uploads, tmp_path):
    model = trained("bert")
    model.push_to_hub("tiny-sparse-bert")
    assert set(uploads) == {"config.json", "model.safetensors", "README.md"}
    card = ModelCard(uploads["README.md"].decode())
    assert {"srigl", "sparse"} <= set(card.data.tags)
    assert 'from_pretrained("somebody/tiny-sparse-bert")' in card.text
    assert str(sparsity_report(model)) in card.text
    write(uploads, tmp_path)
    assert_same_tensors(AUTO.from_pretrained(tmp_path), model)
    copy.deepcopy(model).push_to_hub("a-copy")
    assert b'from_pretrained("somebody/a-copy")' in uploads["README.md"]

    uploads.clear()
    densify(AUTO.from_pretrained(tmp_path)).push_to_hub("tiny-dense-bert")
    assert b"hf_srigl" not in uploads["README.md"]
    assert not {"srigl", "sparse"} & set(ModelCard(uploads["README.md"].decode()).data.tags or [])
    assert b"srigl" not in uploads["config.json"]


def test_push_to_hub_of_a_loaded_model_keeps_the_tags(uploads):
    AUTO.from_pretrained(V1).push_to_hub("tiny")
    assert {"srigl", "sparse"} <= set(ModelCard(uploads["README.md"].decode()).data.tags)


def test_save_pretrained_with_push_to_hub(uploads, tmp_path):
    trained("bert").save_pretrained(tmp_path / "out", push_to_hub=True, repo_id="tiny")
    assert {"config.json", "model.safetensors"} <= set(uploads)
    card = ModelCard(uploads["README.md"].decode())
    assert {"srigl", "sparse"} <= set(card.data.tags)
    assert "import hf_srigl" in card.text


def sparse_trainer(tmp_path, **kwargs):
    args = hf.TrainingArguments(
        str(tmp_path / "my-sparse-bert"), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, save_strategy="no", **kwargs,
    )  # fmt: skip
    rows = BY_NAME["bert"].inputs()
    data = [{name: tensor[i] for name, tensor in rows.items()} | {"labels": i} for i in range(2)]
    return SparseTrainer(model=BY_NAME["bert"].build(), args=args, train_dataset=data, srigl_config=CONFIG)


def test_push_to_hub_of_a_trainer(uploads, tmp_path):
    trainer = sparse_trainer(tmp_path)
    trainer.train()
    trainer.push_to_hub(blocking=True)
    assert {"config.json", "model.safetensors", "README.md", "training_args.bin"} <= set(uploads)
    card = ModelCard(uploads["README.md"].decode())
    assert {"srigl", "sparse"} <= set(card.data.tags)
    assert "hf_srigl" in card.text
    assert install.how() in card.text
    assert "pip install hf_srigl" not in card.text  # no such package is on the index
    assert str(sparsity_report(trainer.model)) in card.text
    snippet = re.search(r"```python\n(import hf_srigl.*?)```", card.text, re.DOTALL).group(1)
    assert 'from_pretrained("somebody/my-sparse-bert")' in snippet

    write(uploads, tmp_path / "downloaded")
    names = {}
    exec(snippet.replace("somebody/my-sparse-bert", str(tmp_path / "downloaded")), names)
    assert_same_tensors(names["model"], trainer.model)

    trainer.push_to_hub()  # again: the section is replaced, not repeated
    assert uploads["README.md"].decode().count("## Sparse model") == 1


def test_push_to_hub_uses_the_name_one_gives(uploads, tmp_path):
    trainer = sparse_trainer(tmp_path, hub_model_id="lab/sparse-bert-90")
    trainer.push_to_hub()
    assert 'from_pretrained("lab/sparse-bert-90")' in uploads["README.md"].decode()


def test_a_loaded_v1_model_trains_on_and_saves_as_version_1(tmp_path):
    model = AUTO.from_pretrained(V1)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["format_version"] == 1
    inputs = {"input_ids": torch.tensor([[2, 5, 7, 3]])}
    assert torch.equal(run(model, inputs), run(AUTO.from_pretrained(tmp_path), inputs))
    assert isinstance(model.classifier, nn.Linear)
    assert all(parameter.requires_grad for parameter in model.parameters())
