"""Every supported architecture: which layers, what they compute, and saving and loading in every way transformers has."""

import copy
import filecmp
import json
import pickle
import shutil
from itertools import chain

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from rounding import GradientSizes, assert_close_path, path_terms, sum_error
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D
from zoo import (
    BY_NAME,
    CASES,
    CONFIG,
    assert_same_tensors,
    condensed,
    dense_twin,
    expand,
    fresh,
    linears,
    loss_of,
    masked_twin,
    padded,
    pixels,
    run,
    tensors_of,
    train,
    trained,
)

from hf_srigl import CondensedLinear, SRigLCallback, SRigLConfig, densify, sparsify, sparsity_report
from hf_srigl.model.attachment import config_of
from hf_srigl.model.targets import may_ablate, produces_attention_inputs
from hf_srigl.rule.topology import find_problem

every_model = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
TIED = {"bert-mlm", "gpt2", "llama-tied", "qwen2-tied", "t5", "t5-gated-untied", "whisper"}  # T5 always ties embeddings
every_generator = pytest.mark.parametrize("case", [c for c in CASES if c.generates], ids=lambda case: case.name)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """name -> folder of the trained condensed model, written once."""
    folders = {}

    def folder_of(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "condensed"
            trained(name).save_pretrained(folders[name])
        return folders[name]

    return folder_of


def last(name):
    return name.rsplit(".", 1)[-1]


# --- which layers ----------------------------------------------------------------------------------------------------


@every_model
def test_sparsify_finds_the_layers_one_expects(case):
    model = fresh(case.name)
    layers = condensed(model)
    assert {last(name) for name in layers} == case.targets
    assert len(layers) == case.layers
    assert {last(name) for name in linears(model)} == case.heads
    assert len(layers) + len(linears(model)) == len(linears(case.build()))
    output_embeddings = model.get_output_embeddings()
    assert output_embeddings is None or type(output_embeddings) is nn.Linear
    tied = set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())
    assert not tied & {f"{name}.weight" for name in layers}
    assert bool(tied) == (case.name in TIED)


@every_model
def test_each_neuron_keeps_its_largest_weights(case):
    dense = dict(case.build().named_modules())
    for name, layer in condensed(fresh(case.name)).items():
        weight = dense[name].weight.detach()
        weight = weight.t() if type(dense[name]) is Conv1D else weight
        assert layer.transposed == (type(dense[name]) is Conv1D)
        fan_in = max(1, round(0.25 * weight.shape[1]))
        for row, (values, mask) in enumerate(zip(weight.abs(), layer.mask(), strict=True)):
            assert int(mask.sum()) == fan_in, (name, row)
            assert values[mask].min() >= values[~mask].max(), (name, row)
        assert torch.equal(layer.to_dense(), weight * layer.mask())


@every_model
def test_queries_keys_and_values_are_never_ablated(case):
    kept = {name for name in condensed(fresh(case.name)) if produces_attention_inputs(name)}
    assert {last(name) for name in kept} == case.never_ablated
    for name, layer in condensed(trained(case.name)).items():
        assert may_ablate(name, CONFIG) == (name not in kept)
        if name in kept:
            assert bool(layer.active.all()), name


# --- what they compute -----------------------------------------------------------------------------------------------


@every_model
def test_outputs_equal_those_of_the_masked_dense_model(case):
    inputs = case.inputs()
    y, twin = run(fresh(case.name), inputs), masked_twin(case, fresh(case.name))
    terms = path_terms(twin)
    assert_close_path(y, run(twin, inputs), terms=terms)
    with pytest.raises(AssertionError, match="further apart than rounding explains"):
        assert_close_path(y, run(with_a_connection_less(twin, condensed(fresh(case.name))), inputs), terms=terms)


@every_model
def test_outputs_with_ablated_neurons_equal_those_of_a_dense_model(case):
    model, inputs = trained(case.name), case.inputs()
    assert any(not layer.active.all() for layer in condensed(model).values())
    twin = dense_twin(case, model)
    assert_close_path(run(model, inputs), run(twin, inputs), terms=path_terms(twin))


def with_a_connection_less(twin, layers):
    """In the last sparse layer, the connection that matters most to the loss (or, without gradients, the largest)."""
    weight = twin.get_submodule(list(layers)[-1]).weight
    with torch.no_grad():
        score = weight if weight.grad is None else weight * weight.grad  # 0 where it reads an ablated neuron
        weight.view(-1)[score.abs().argmax()] = 0.0
    return twin


@every_model
@pytest.mark.parametrize("make", [fresh, trained])
def test_gradients_equal_those_of_the_dense_model(case, make):
    model = copy.deepcopy(make(case.name)).train(False)
    twin = dense_twin(case, model)
    sizes = GradientSizes(linears(twin))
    found, expected = gradients(case, model), gradients(case, twin)
    for name, layer in condensed(model).items():
        assert torch.isfinite(layer.weight.grad).all(), name
        assert layer.weight.grad.abs().max() > 0, name
        assert layer.indices[layer.weight.grad != 0].min() >= 0, name  # nothing flows to unused slots
    bounds = {"terms": path_terms(twin), "sizes": sizes, "layers": condensed(model)}
    assert_gradients(found, expected, **bounds)
    with pytest.raises(AssertionError, match="further apart than rounding explains"):
        assert_gradients(found, gradients(case, with_a_connection_less(twin, condensed(model))), **bounds)


def assert_gradients(found, expected, *, terms, sizes, layers):
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        layer = layers.get(name.removesuffix(".weight"))
        wanted = grad if layer is None else grad * oriented(layer.mask(), layer)
        assert_close_path(found[name], wanted, terms=terms, size=sizes.of(name), name=name)


def oriented(matrix, layer):
    return matrix.t() if layer.transposed else matrix


def gradients(case, model):
    """name -> gradient, those of condensed layers (N, K) as of dense ones."""
    model.zero_grad()
    loss_of(model, case.inputs()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for name, layer in condensed(model).items():
        dense = expand(grads[f"{name}.weight"], layer.indices, layer.active, layer.in_features)
        grads[f"{name}.weight"] = oriented(dense, layer)
    return grads


@every_model
def test_topology_updates_with_ablation_run(case):
    model = sparsify(case.build(), CONFIG)
    before = {name: layer.mask() for name, layer in condensed(model).items()}
    sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model, reports = train(case, model)
    assert [report.step for report in reports] == [2, 4]
    assert all(len(report.layers) == case.layers for report in reports)
    assert reports[-1].active_neurons < 1
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == sizes
    for name, layer in condensed(model).items():
        assert find_problem(layer.indices, layer.active, layer.in_features) is None, name
        assert not torch.equal(layer.mask(), before[name]), name
        assert int(layer.mask().sum()) <= layer.budget
        assert torch.isfinite(layer.weight).all()
    assert torch.isfinite(run(model.eval(), case.inputs())).all()


# --- saving and loading ----------------------------------------------------------------------------------------------


@every_model
def test_save_and_load_give_the_same_tensors_and_outputs(case, saved):
    model = trained(case.name)
    loaded, info = case.auto.from_pretrained(saved(case.name), output_loading_info=True)
    assert type(loaded) is case.model_class
    assert {key: len(value) for key, value in info.items() if len(value)} == {}
    assert_same_tensors(model, loaded)
    assert condensed(loaded).keys() == condensed(model).keys()
    assert torch.equal(run(loaded, case.inputs()), run(model, case.inputs()))
    assert config_of(loaded) == CONFIG
    assert not loaded.training


def read_config(folder):
    """config.json, less the dtype that loading writes into the configurations of a model's parts."""
    config = json.loads((folder / "config.json").read_text())
    parts = ("text_config", "vision_config")
    return config | {k: {n: v for n, v in config[k].items() if n != "dtype"} for k in parts if k in config}


@every_model
def test_a_condensed_file_has_only_condensed_layers(case, saved):
    """The size on disk falls, and no dense matrix of a target layer is in the file."""
    config = json.loads((saved(case.name) / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format_version"]) == ("srigl", 1)
    layers = condensed(trained(case.name))
    assert config["layers"] == {name: layer.budget for name, layer in layers.items()}
    assert SRigLConfig.from_dict({k: config[k] for k in CONFIG.to_dict()}) == CONFIG
    with_zeros = sum(t.numel() * t.element_size() for t in dense_twin(case, trained(case.name)).parameters())
    assert (saved(case.name) / "model.safetensors").stat().st_size < 0.85 * with_zeros + 20_000


@every_model
def test_saving_what_was_loaded_gives_the_same_bytes(case, saved, tmp_path):
    case.auto.from_pretrained(saved(case.name)).save_pretrained(tmp_path)
    assert filecmp.cmp(saved(case.name) / "model.safetensors", tmp_path / "model.safetensors", shallow=False)
    before, after = (read_config(folder) for folder in (saved(case.name), tmp_path))
    assert after == before


@every_model
def test_loading_without_and_with_a_head(case, saved, tmp_path):
    model = trained(case.name)
    headless, info = case.headless.from_pretrained(saved(case.name), output_loading_info=True)
    expected = base_output(case, model, info["missing_keys"])
    assert torch.equal(base_output(case, headless, info["missing_keys"]), expected)
    if type(headless) is not case.model_class:
        assert set(linears(headless)) & condensed(headless).keys() == set()
        assert len(condensed(headless)) == case.layers

    headless.save_pretrained(tmp_path)
    assert_same_tensors(headless, case.headless.from_pretrained(tmp_path))
    with_head = case.auto.from_pretrained(tmp_path)
    assert type(with_head) is case.model_class
    assert condensed(with_head).keys() == condensed(model).keys()
    assert torch.equal(base_output(case, with_head, info["missing_keys"]), expected)


def base_output(case, model, missing):
    """What the model without its head computes; without the pooler where the checkpoint had none."""
    inputs = case.inputs()
    if case.name.startswith("t5"):  # the model with a head has no module that is the model without
        config = copy.deepcopy(model.config)
        del config.quantization_config
        inner = hf.T5Model(config)
        inner.shared, inner.encoder, inner.decoder = model.shared, model.encoder, model.decoder
        base = inner.eval()
    elif case.name == "clip-image":  # its model without a head is CLIP with both towers
        base = model.vision_model
    else:
        base = model.base_model
    with torch.no_grad():
        output = base(**inputs)
    if any("pooler" in name for name in missing):
        return output.last_hidden_state
    return tensors_of(output)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.build().base_model_prefix in dict(c.build().named_children())], ids=lambda c: c.name
)
def test_the_base_model_of_a_condensed_model_can_be_saved_by_itself(case, tmp_path):
    base = trained(case.name).base_model
    base.save_pretrained(tmp_path)
    loaded, info = case.headless.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] or all("pooler" in name for name in info["missing_keys"])
    assert condensed(loaded).keys() == condensed(base).keys()
    expected = base_output(case, trained(case.name), info["missing_keys"])
    assert torch.equal(base_output(case, loaded, info["missing_keys"]), expected)
    with_head = case.auto.from_pretrained(tmp_path)
    assert torch.equal(base_output(case, with_head, info["missing_keys"]), expected)


@pytest.mark.parametrize(
    "part", [hf.CLIPVisionModel, hf.CLIPTextModel, hf.CLIPVisionModelWithProjection, hf.CLIPTextModelWithProjection]
)
def test_a_part_of_clip_loads_by_itself(part, saved, tmp_path):
    whole = trained("clip")
    vision = "Vision" in part.__name__
    inputs = pixels() if vision else padded()
    inner = whole.vision_model if vision else whole.text_model
    projection = {"projection_dim": whole.config.projection_dim} if "Projection" in part.__name__ else {}
    loaded, info = part.from_pretrained(saved("clip"), output_loading_info=True, **projection)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert len(condensed(loaded)) >= len(condensed(inner))
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).last_hidden_state, inner(**inputs).last_hidden_state)
        loaded.save_pretrained(tmp_path)
        again = part.from_pretrained(tmp_path)
        assert torch.equal(again(**inputs).last_hidden_state, inner(**inputs).last_hidden_state)


def test_damage_is_found_when_a_part_of_clip_is_loaded(saved, tmp_path):
    folder = shutil.copytree(saved("clip"), tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.encoder.layers.0.mlp.fc1.indices"][0] = 30000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    hf.CLIPTextModel.from_pretrained(folder)  # reads the other half
    with pytest.raises(ValueError, match=r"encoder\.layers\.0\.mlp\.fc1: .*found 30000"):
        hf.CLIPVisionModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_no_dense_model_is_built_from_the_configuration_of_a_condensed_one(name, saved):
    case = BY_NAME[name]
    config = hf.AutoConfig.from_pretrained(saved(name))
    for build in (lambda: case.auto.from_config(config), lambda: type(trained(name))(trained(name).config)):
        with pytest.raises(ValueError, match="only from_pretrained can"):
            build()
    with torch.device("meta"):  # as tools do that only want sizes
        case.auto.from_config(config)


def test_the_way_out_that_the_refusal_names(saved):
    config = hf.AutoConfig.from_pretrained(saved("bert"))
    del config.quantization_config
    model = sparsify(BY_NAME["bert"].auto.from_config(config), SRigLConfig(init="random"))
    assert condensed(model).keys() == condensed(trained("bert")).keys()


@every_model
def test_sharded_files(case, saved, tmp_path):
    model = trained(case.name)
    model.save_pretrained(tmp_path, max_shard_size="12KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_tensors(model, case.auto.from_pretrained(tmp_path))


@every_model
def test_loading_in_bfloat16(case, saved):
    model = trained(case.name)
    loaded = case.auto.from_pretrained(saved(case.name), dtype=torch.bfloat16)
    for name, layer in condensed(loaded).items():
        ours = model.get_submodule(name)
        assert layer.weight.dtype == torch.bfloat16
        assert torch.equal(layer.weight, ours.weight.to(torch.bfloat16)), name
        assert torch.equal(layer.indices, ours.indices)
        assert layer.indices.dtype == ours.indices.dtype
        assert layer.active.dtype == torch.bool
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in case.inputs().items()}
    expected, y = run(model, case.inputs()), run(loaded, inputs)
    assert (y - expected).norm() < 0.1 * expected.norm()


@every_model
def test_condensing_a_dense_checkpoint_while_loading(case, tmp_path):
    dense = case.build()
    dense.save_pretrained(tmp_path / "dense")
    loaded = case.auto.from_pretrained(tmp_path / "dense", quantization_config=CONFIG)
    assert_same_tensors(loaded, fresh(case.name))
    assert_same_tensors(loaded, sparsify(case.auto.from_pretrained(tmp_path / "dense"), CONFIG))
    assert config_of(loaded) == CONFIG
    loaded.save_pretrained(tmp_path / "condensed")
    assert_same_tensors(loaded, case.auto.from_pretrained(tmp_path / "condensed"))


def test_condensing_while_loading_uses_every_part_of_the_configuration(tmp_path):
    BY_NAME["bert"].build().save_pretrained(tmp_path)
    config = SRigLConfig(sparsity=0.5, distribution="erk", init="random", exclude_modules=["pooler.dense"], seed=3)
    auto = hf.AutoModelForSequenceClassification
    loaded = auto.from_pretrained(tmp_path, quantization_config=config)
    assert_same_tensors(loaded, sparsify(auto.from_pretrained(tmp_path), config))
    assert len({layer.budget / layer.mask().numel() for layer in condensed(loaded).values()}) > 1  # erk
    assert "bert.pooler.dense" not in condensed(loaded)


def test_condensing_while_loading_in_bfloat16(tmp_path):
    case = BY_NAME["gpt2"]
    case.build().save_pretrained(tmp_path)
    loaded = case.auto.from_pretrained(tmp_path, quantization_config=CONFIG, dtype=torch.bfloat16)
    assert {layer.weight.dtype for layer in condensed(loaded).values()} == {torch.bfloat16}
    assert_same_tensors(loaded, sparsify(case.auto.from_pretrained(tmp_path, dtype=torch.bfloat16), CONFIG))


def test_condensing_while_loading_from_headless_and_sharded_files(tmp_path):
    case = BY_NAME["bert"]
    case.build().base_model.save_pretrained(tmp_path, max_shard_size="12KB")
    loaded = case.auto.from_pretrained(tmp_path, quantization_config=CONFIG)
    assert torch.equal(run(loaded.base_model, case.inputs()), run(fresh("bert").base_model, case.inputs()))


def test_a_new_head_of_another_size(saved):
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(
        saved("bert"), num_labels=5, ignore_mismatched_sizes=True
    )
    assert loaded.classifier.out_features == 5
    inputs = BY_NAME["bert"].inputs()
    assert torch.equal(run(loaded.base_model, inputs), run(trained("bert").base_model, inputs))


def test_another_task_head(saved):
    """From a classifier to masked language modelling: `bert.pooler` is absent there, the rest is found."""
    loaded = hf.AutoModelForMaskedLM.from_pretrained(saved("bert"))
    assert set(condensed(trained("bert"))) - set(condensed(loaded)) == {"bert.pooler.dense"}
    ids = BY_NAME["bert"].inputs()
    with torch.no_grad():
        y, expected = (m.base_model(**ids).last_hidden_state for m in (loaded, trained("bert")))
    assert torch.equal(y, expected)


def test_the_encoder_of_t5(saved):
    loaded = hf.T5EncoderModel.from_pretrained(saved("t5"))
    assert len(condensed(loaded)) == 6
    inputs = {k: v for k, v in BY_NAME["t5"].inputs().items() if not k.startswith("decoder")}
    assert torch.equal(run(loaded, inputs), run(trained("t5").encoder, inputs))


def test_variants_and_subfolders(tmp_path):
    auto = BY_NAME["bert"].auto
    trained("bert").save_pretrained(tmp_path / "inner", variant="sparse")
    assert (tmp_path / "inner" / "model.sparse.safetensors").exists()
    assert_same_tensors(auto.from_pretrained(tmp_path, subfolder="inner", variant="sparse"), trained("bert"))


def test_a_model_cast_to_bfloat16_saves_and_loads_as_such(saved, tmp_path):
    model = BY_NAME["bert"].auto.from_pretrained(saved("bert")).to(torch.bfloat16)
    assert model.bert.pooler.dense.indices.dtype == torch.int16
    model.save_pretrained(tmp_path)
    loaded = BY_NAME["bert"].auto.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert_same_tensors(loaded, model)


def test_device_map(saved):
    loaded = BY_NAME["bert"].auto.from_pretrained(saved("bert"), device_map="cpu")
    assert_same_tensors(loaded, trained("bert"))


# --- back to dense ---------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("how", ["densify", "dequantize"])
def test_back_to_a_plain_dense_model(case, how, saved, tmp_path):
    model, plain = trained(case.name), case.build()
    if how == "densify":
        dense = densify(copy.deepcopy(model))
    else:
        loaded = case.auto.from_pretrained(saved(case.name))
        dense = loaded.dequantize()
        assert dense is loaded
    types = {name: type(module) for name, module in plain.named_modules()}
    assert {name: type(module) for name, module in dense.named_modules()} == types
    assert dense.state_dict().keys() == plain.state_dict().keys()
    assert not any(
        hasattr(m.config, "quantization_config") for m in dense.modules() if isinstance(m, hf.PreTrainedModel)
    )
    assert getattr(dense, "hf_quantizer", None) is None
    assert not getattr(dense, "is_quantized", False)
    assert config_of(dense) is None
    assert_close_path(run(dense, case.inputs()), run(model, case.inputs()), terms=path_terms(dense))

    dense.save_pretrained(tmp_path / "dense")
    dense_twin(case, model).save_pretrained(tmp_path / "twin")
    assert filecmp.cmp(tmp_path / "dense/model.safetensors", tmp_path / "twin/model.safetensors", shallow=False)
    assert read_config(tmp_path / "dense") == read_config(tmp_path / "twin")
    again = case.auto.from_pretrained(tmp_path / "dense")
    assert not condensed(again)
    assert_same_tensors(again, dense)
    assert_same_tensors(sparsify(dense, CONFIG), sparsify(again, CONFIG))  # and it can be made sparse once more


def test_dequantize_after_saving(tmp_path):
    """Saving writes the dtype into the configuration as text."""
    model = copy.deepcopy(trained("gpt2"))
    model.save_pretrained(tmp_path)
    assert not condensed(model.dequantize())
    assert_same_tensors(model, densify(copy.deepcopy(trained("gpt2"))))


def test_dequantize_into_another_dtype(saved):
    loaded = BY_NAME["bert"].auto.from_pretrained(saved("bert")).dequantize(torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


# --- copies ----------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(case, copied):
    model = trained(case.name)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = copied(model)
    assert_same_tensors(model, twin)
    assert config_of(twin) == CONFIG
    assert twin.hf_quantizer is not model.hf_quantizer
    handles = [int(layer.dense_grad.handle) for m in (model, twin) for layer in condensed(m).values()]
    assert len(set(handles)) == len(handles)
    train(case, twin)
    changed = twin.state_dict()
    assert any(not torch.equal(tensor, changed[name]) for name, tensor in before.items())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(layer.weight.grad is None and layer.dense_grad.value is None for layer in condensed(model).values())


# --- what users do with a model --------------------------------------------------------------------------------------


@every_generator
@pytest.mark.parametrize("beams", [1, 3])
def test_generate(case, beams, saved):
    model = case.auto.from_pretrained(saved(case.name))
    inputs = {k: v for k, v in case.inputs().items() if k != "decoder_input_ids"}
    if not case.name.startswith(("t5", "whisper")):
        inputs = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])}
    tokens, twins, others = (
        m.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=beams)
        for m in (model, dense_twin(case, model), case.build())
    )
    assert torch.equal(tokens, twins)
    assert not torch.equal(tokens, others)


def rounding_of_scores(twin):
    """Of two models' probabilities, which are at most 1."""
    return 2 * sum_error(path_terms(twin), 1.0, torch.float32)


def test_text_classification_pipeline(saved, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sparse", "stays", "dense", "is", "slow"]
    tokenizer = hf.BertTokenizer({word: i for i, word in enumerate(words)})
    pipes = []
    for name, model in (("condensed", trained("bert")), ("twin", dense_twin(BY_NAME["bert"], trained("bert")))):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        pipes.append(hf.pipeline("text-classification", model=str(tmp_path / name), top_k=None, device="cpu"))
    assert condensed(pipes[0].model)
    assert not condensed(pipes[1].model)
    ours, twins = (pipe(["sparse stays sparse", "dense is slow"]) for pipe in pipes)
    assert ours[0] != ours[1]
    for a, b in zip(chain(*ours), chain(*twins), strict=True):
        assert a["label"] == b["label"]
        assert a["score"] == pytest.approx(b["score"], rel=0, abs=rounding_of_scores(pipes[1].model))


def test_image_classification_pipeline(tmp_path):
    processor = hf.ViTImageProcessor(size={"height": 16, "width": 16})
    pipes = []
    for name, model in (("condensed", trained("vit")), ("twin", dense_twin(BY_NAME["vit"], trained("vit")))):
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        pipes.append(hf.pipeline("image-classification", model=str(tmp_path / name), device="cpu"))
    assert condensed(pipes[0].model)
    noise = np.random.default_rng(0).integers(0, 255, (2, 20, 20, 3), dtype=np.uint8)
    ours, twins = (pipe([Image.fromarray(image) for image in noise]) for pipe in pipes)
    assert ours[0] != ours[1]
    for a, b in zip(chain(*ours), chain(*twins), strict=True):
        assert a["label"] == b["label"]
        assert a["score"] == pytest.approx(b["score"], rel=0, abs=rounding_of_scores(pipes[1].model))


class Labelled(torch.utils.data.Dataset):
    """The model's own inputs, one by one, with a label for classifiers."""

    def __init__(self, case):
        self.rows = case.inputs()
        self.case = case

    def __len__(self):
        return 2

    def __getitem__(self, i):
        row = {name: tensor[i] for name, tensor in self.rows.items()}
        row["labels"] = row["input_ids"] if "input_ids" in row and self.case.generates else torch.tensor(i)
        return row


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-tied", "t5", "vit", "deit", "dinov2-gated", "clip-image"])
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_trainer_checkpoints_load_and_resume(name, tmp_path):
    """A stock Trainer with the callback: its checkpoints load through the auto classes, and the best one is reloaded."""
    case = BY_NAME[name]
    if name == "deit":  # the model with a teacher is for inference only
        case_class, auto = hf.DeiTForImageClassification, hf.AutoModelForImageClassification
        torch.manual_seed(0)
        model = sparsify(case_class(case.config()), CONFIG)
    else:
        auto, model = case.auto, sparsify(case.build(), CONFIG)
    args = hf.TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, save_steps=2, eval_strategy="steps", eval_steps=2,
        learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True, load_best_model_at_end=True,
        metric_for_best_model="srigl_test_score", greater_is_better=True, dataloader_pin_memory=False,
    )  # fmt: skip
    states = {}

    class Score(hf.TrainerCallback):
        """The first checkpoint is the best one, so that it has to be loaded at the end."""

        def on_step_end(self, args, state, control, model, **kwargs):
            states[state.global_step] = copy.deepcopy(model)

    class Scored(hf.Trainer):
        def evaluate(self, *args, **kwargs):
            metrics = {"eval_srigl_test_score": -self.state.global_step}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    data = Labelled(case)
    trainer = Scored(model, args, train_dataset=data, eval_dataset=data, callbacks=[SRigLCallback(), Score()])
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert_same_tensors(trainer.model, states[2])
    assert any(not torch.equal(t, states[4].state_dict()[n]) for n, t in states[2].state_dict().items())
    for step in (2, 4):
        loaded, info = auto.from_pretrained(tmp_path / f"checkpoint-{step}", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_same_tensors(states[step], loaded)

    fresh_model = sparsify(type(model)(model.config.__class__.from_dict(plain(model.config))), CONFIG)
    resumed = hf.Trainer(
        fresh_model, hf.TrainingArguments(str(tmp_path / "resumed"), max_steps=4, per_device_train_batch_size=2,
        learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        dataloader_pin_memory=False), train_dataset=data, callbacks=[SRigLCallback()],
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))  # complete: loads and trains no more
    assert_same_tensors(resumed.model, states[4])


def plain(config):
    values = config.to_dict()
    for part in (values, *values.values()):  # CLIP's parts have their own
        if isinstance(part, dict):
            part.pop("quantization_config", None)
    return values


def test_report_and_repr_of_a_loaded_model(saved):
    loaded = BY_NAME["bert"].auto.from_pretrained(saved("bert"))
    # a copy of the model: earlier calls of the model itself may have left dense copies of layers, which a report counts
    assert str(sparsity_report(loaded)) == str(sparsity_report(copy.deepcopy(trained("bert"))))
    assert "CondensedLinear(in_features=32, out_features=32, bias=True, fan_in=8, active=32/32)" in repr(loaded)
    assert isinstance(loaded.bert.encoder.layer[0].output.dense, CondensedLinear)
    assert isinstance(loaded.classifier, nn.Linear)
    assert tensors_of(loaded(**BY_NAME["bert"].inputs())).shape == (4,)
