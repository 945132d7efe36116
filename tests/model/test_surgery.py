"""Which layers become sparse, and the way there and back."""

import copy
import inspect
import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import transformers
from rounding import assert_close_path, assert_product, path_terms
from torch import nn
from torch.nn.utils import prune
from transformers import GPT2Config, GPT2LMHeadModel, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
from transformers.pytorch_utils import Conv1D

from conftest import tiny_bert
from hf_srigl import CondensedLinear, SRigLConfig, densify, sparsify
from hf_srigl.model.attachment import condensed_layers, config_of
from hf_srigl.model.targets import WEIGHT_READ_AS_MATRIX, find_targets, may_ablate, produces_attention_inputs
from hf_srigl.rule import topology
from hf_srigl.rule.draws import generator_for


def names(model, **options):
    return list(find_targets(model, SRigLConfig(**options)))


def test_defaults_leave_heads_alone():
    found = names(tiny_bert())
    assert "classifier" not in found
    assert "bert.pooler.dense" in found
    assert sum(name.endswith("query") for name in found) == 2
    assert len(found) == 13


def test_targets_read_as_in_peft():
    model = tiny_bert()
    assert names(model, target_modules=["query", "output.dense"]) == [
        f"bert.encoder.layer.{i}.{rest}"
        for i in range(2)
        for rest in ("attention.self.query", "attention.output.dense", "output.dense")
    ]
    assert names(model, target_modules=r"bert\.encoder\.layer\.1\..*dense", exclude_modules=["intermediate.dense"]) == [
        "bert.encoder.layer.1.attention.output.dense",
        "bert.encoder.layer.1.output.dense",
    ]
    assert len(names(model, exclude_modules=r".*\.layer\.0\..*")) == 7
    assert names(model, target_modules=["classifier"]) == ["classifier"]  # a head by explicit wish


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"target_modules": ["quary"]},
            "names 'quary', which no layer matches; last names of linear layers: ['classifier'",
        ),
        ({"target_modules": ["query", "nope"]}, "names 'nope', which no layer matches"),
        ({"exclude_modules": ["pooller"]}, "exclude_modules names 'pooller', which no layer matches"),
        ({"never_ablate": ["intermediat"]}, "never_ablate names 'intermediat', which no layer matches"),
        ({"target_modules": "nothing"}, "matches nothing; it could match: bert.encoder.layer.0.attention.self.query,"),
        ({"target_modules": ["query"], "exclude_modules": ["query"]}, "matches nothing"),
        ({"target_modules": ["LayerNorm"]}, "expected nn.Linear or transformers Conv1D, found LayerNorm"),
        ({"target_modules": ["word_embeddings"]}, "found Embedding; leave it out"),
    ],
    ids=str,
)
def test_targets_that_cannot_be(options, says):
    model = tiny_bert()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=None) as error:
        sparsify(model, SRigLConfig(**options))
    assert says in str(error.value)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_tied_weights_are_left_and_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    assert "lm_head" not in names(model)
    with pytest.raises(ValueError, match=r"layer lm_head cannot be made sparse: its weight is tied to transformer.wte"):
        sparsify(model, SRigLConfig(target_modules=["lm_head"]))
    pair = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    pair[1].weight = pair[0].weight
    assert names(pair) == ["2"]
    with pytest.raises(ValueError, match="no layer to make sparse"):
        names(pair[:2])


def test_multihead_attention_is_left_and_refused():
    model = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32), nn.Linear(4, 4)])
    assert names(model) == ["1"]  # in evaluation the encoder layer reads linear1 and linear2 as matrices too
    with pytest.raises(ValueError, match=r"0\.linear1 cannot be made sparse: nn.TransformerEncoderLayer reads"):
        names(model, target_modules=["linear1"])
    with pytest.raises(ValueError, match=r"self_attn.out_proj cannot be made sparse: nn.MultiheadAttention reads"):
        names(model, target_modules=["out_proj"])


def test_subclasses_of_linear_are_left_and_refused():
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Scaled(4, 4))
    assert names(model) == ["0"]
    with pytest.raises(ValueError, match="Scaled is a linear layer of its own kind"):
        names(model, target_modules=["1"])


def test_models_that_read_a_weight_as_a_matrix():
    config = transformers.MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = transformers.MambaForCausalLM(config)
    assert {name.rsplit(".", 1)[-1] for name in names(model)} == {"in_proj"}
    with pytest.raises(ValueError, match="mamba reads its weight as a matrix"):
        names(model, target_modules=["dt_proj"])
    ids = torch.randint(0, 20, (1, 5))
    sparse = sparsify(copy.deepcopy(model), SRigLConfig(sparsity=0.5))
    assert sparse(ids).logits.shape == model(ids).logits.shape


def test_the_list_of_such_models_is_complete_for_this_transformers():
    """Search transformers' modeling files for linear layers whose weight is read, and compare with the table."""
    read = re.compile(r"self\.(\w+)\.weight\b(?!\s*(\.dtype|\.device|\s*=))")
    found = {}
    root = Path(inspect.getfile(transformers)).parent / "models"
    for path in root.glob("*/modeling_*.py"):
        text = path.read_text()
        linear = set(re.findall(r"self\.(\w+) = nn\.Linear\(", text))
        for line in text.splitlines():
            for match in read.finditer(line):
                harmless = "init." in line or "isinstance" in line or "dtype" in line or "tie" in line
                head = match[1] in ("lm_head", "decoder", "proj_out", "embed_out", "classifier", "score")
                if match[1] in linear and not harmless and not head:
                    found.setdefault(path.parent.name, set()).add(match[1])
    missing = {
        m: layers - {entry.rpartition(".")[2] for entry in WEIGHT_READ_AS_MATRIX.get(m, ())}
        for m, layers in found.items()
    }
    missing = {m: layers for m, layers in missing.items() if layers and m not in READ_WITHOUT_HARM}
    assert "mamba" in found  # the search finds something
    assert missing == {}


# model -> why reading a linear layer's weight there does no harm
READ_WITHOUT_HARM = {
    "bloom": "only with slow_but_exact and pretraining_tp > 1, a debugging mode, and then it fails loudly",
    "minicpm_ocr": "only when initialising fresh weights",
    "minicpmv4_6": "only when initialising fresh weights",
    "minicpmv4_7": "only when initialising fresh weights",
}


@pytest.mark.parametrize(
    "name",
    (
        "query key value q_proj k_proj v_proj q k v q_lin k_lin "
        "v_lin c_attn Wqkv query_key_value qkv_proj query_proj key_proj value_proj in_proj qkv q_a_proj kv_b_proj"
    ).split(),
)
def test_attention_inputs_are_never_ablated(name):
    assert produces_attention_inputs(f"model.layers.0.attn.{name}")
    assert not may_ablate(f"model.layers.0.attn.{name}", SRigLConfig())


@pytest.mark.parametrize(
    "name",
    "dense fc1 fc2 c_fc c_proj o_proj out_proj wo wi_0 up_proj gate_proj Wi Wo lin1".split(),
)
def test_other_layers_may_be_ablated(name):
    assert may_ablate(f"model.layers.0.mlp.{name}", SRigLConfig())
    assert not may_ablate(f"model.layers.0.mlp.{name}", SRigLConfig(never_ablate=[name]))
    assert not may_ablate(f"model.layers.0.mlp.{name}", SRigLConfig(gamma_sal=None))


def test_magnitude_start_keeps_the_largest_of_each_row():
    linear = nn.Linear(30, 10)
    weight = linear.weight.detach().clone()
    layer = sparsify(nn.Sequential(linear), SRigLConfig(sparsity=0.9))[0]
    for n in range(10):
        kept = weight[n].abs().sort(descending=True).indices[:3]
        assert set(layer.mask()[n].nonzero().squeeze(1).tolist()) == set(kept.tolist())
    assert torch.equal(layer.to_dense(), weight * layer.mask())


def test_random_start_keeps_the_variance_of_activations():
    model = sparsify(nn.Sequential(nn.Linear(1000, 500)), SRigLConfig(sparsity=0.9, init="random"))
    assert float(model[0].weight.detach().std()) == pytest.approx(0.1, rel=0.03)  # 1 / sqrt(100)
    assert float(model[0](torch.randn(64, 1000)).detach().std()) == pytest.approx(1.0, rel=0.1)
    magnitude = topology.magnitude_mask(model[0].to_dense().abs(), 100)
    assert torch.equal(magnitude, model[0].mask())  # no value is exactly zero


def test_random_start_depends_on_seed_and_layer_not_on_the_dense_weights():
    def masks(seed, order):
        model = nn.ModuleDict({name: nn.Linear(20, 10) for name in order})
        model = sparsify(model, SRigLConfig(sparsity=0.8, init="random", seed=seed))
        return {name: layer.to_dense() for name, layer in condensed_layers(model).items()}

    first, again, other = masks(0, "ab"), masks(0, "ba"), masks(1, "ab")
    assert all(torch.equal(first[name], again[name]) for name in "ab")
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], other["a"])


def test_the_way_back():
    model = tiny_bert()
    model.eval()
    ids = torch.randint(0, 100, (2, 8))
    sparse = sparsify(copy.deepcopy(model), SRigLConfig(sparsity=0.5))
    masks = {name: layer.mask() for name, layer in condensed_layers(sparse).items()}
    expected = sparse(ids).logits
    dense = densify(sparse)
    assert dense is sparse
    assert not condensed_layers(dense)
    assert config_of(dense) is None
    for name, mask in masks.items():
        module, original = dense.get_submodule(name), model.get_submodule(name)
        assert type(module) is nn.Linear
        assert torch.equal(module.weight, original.weight * mask)
        assert torch.equal(module.bias, original.bias)
    assert_close_path(dense(ids).logits, expected, terms=path_terms(dense))
    with pytest.raises(ValueError, match="nothing to densify"):
        densify(dense)
    assert condensed_layers(sparsify(dense, SRigLConfig(sparsity=0.9)))  # and there again


def test_conv1d_comes_back_as_conv1d():
    model = nn.Sequential(Conv1D(12, 8))
    x = torch.randn(2, 8)
    weight = model[0].weight.detach().clone()
    sparse = sparsify(copy.deepcopy(model), SRigLConfig(sparsity=0.0))
    assert_product(sparse(x), x, weight.t(), model[0].bias)
    assert sparse[0].transposed
    back = densify(sparse)
    assert type(back[0]) is Conv1D
    assert torch.equal(back[0].weight, weight)
    assert back[0].weight.is_contiguous()


def test_flags_survive():
    linear = nn.Linear(8, 8).to(torch.bfloat16).eval()
    linear.weight.requires_grad_(False)
    layer = sparsify(nn.Sequential(linear), SRigLConfig(sparsity=0.5))[0]
    assert isinstance(layer, CondensedLinear)
    assert layer.weight.dtype == torch.bfloat16
    assert not layer.training
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    back = densify(nn.Sequential(layer))[0]
    assert (back.weight.dtype, back.training, back.weight.requires_grad) == (torch.bfloat16, False, False)


def test_errors_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 1: expected finite weights, found NaN or inf"):
        sparsify(model, SRigLConfig())
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match=r"layer 0 has no data \(meta device\)"):
        sparsify(nn.Sequential(nn.Linear(8, 8, device="meta")), SRigLConfig())
    sparse = sparsify(nn.Sequential(nn.Linear(8, 8)), SRigLConfig())
    with pytest.raises(ValueError, match=r"condensed already \(1 layers, first 0\)"):
        sparsify(sparse, SRigLConfig())


def test_generators_depend_on_all_parts():
    draws = {
        float(torch.rand(1, generator=generator_for(*parts))) for parts in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 1))
    }
    assert len(draws) == 4


def test_models_that_share_a_config_do_not_disturb_each_other(tmp_path):
    dense = tiny_bert()
    shared = dense.config
    first = sparsify(type(dense)(shared), SRigLConfig(sparsity=0.5))
    second = sparsify(type(dense)(shared), SRigLConfig(sparsity=0.9))
    for name, model in (("dense", dense), ("first", first), ("second", second)):
        model.save_pretrained(tmp_path / name)
        again = type(model).from_pretrained(tmp_path / name)
        assert all(torch.equal(t, again.state_dict()[key]) for key, t in model.state_dict().items())
    densify(second)
    first.save_pretrained(tmp_path / "first")
    assert condensed_layers(type(first).from_pretrained(tmp_path / "first"))
    assert all(module.config is first.config for module in first.modules() if "config" in module.__dict__)
    first.set_attn_implementation("eager")
    assert first.bert.encoder.layer[0].attention.self.config._attn_implementation == "eager"


def test_a_wrapper_around_a_pretrained_model(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_bert()

    wrapper = sparsify(Wrapper(), SRigLConfig(sparsity=0.8))
    wrapper.inner.save_pretrained(tmp_path)
    again = type(wrapper.inner).from_pretrained(tmp_path)
    assert all(torch.equal(t, again.state_dict()[key]) for key, t in wrapper.inner.state_dict().items())
    assert type(densify(wrapper).inner.bert.pooler.dense) is nn.Linear
    assert not wrapper.inner.is_quantized


def test_a_layer_by_itself_cannot_be_replaced():
    with pytest.raises(ValueError, match="itself the layer to replace"):
        sparsify(nn.Linear(8, 8), SRigLConfig())
    with pytest.raises(ValueError, match="itself the condensed layer"):
        densify(CondensedLinear(8, 8, 16))
    with pytest.raises(TypeError, match="config must be an SRigLConfig, got dict"):
        sparsify(tiny_bert(), {"sparsity": 0.5})


def test_tied_biases_stay_tied_and_what_would_be_lost_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].bias = model[0].bias
    sparse = sparsify(model, SRigLConfig(sparsity=0.5))
    assert sparse[0].bias is sparse[1].bias
    assert densify(sparse)[0].bias is sparse[1].bias

    hooked = nn.Sequential(nn.Linear(8, 8))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="layer 0 has hooks, which would be lost"):
        sparsify(hooked, SRigLConfig())
    pruned = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    prune.random_unstructured(pruned[0], "weight", amount=0.5)
    assert names(pruned) == ["1"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's call into transformers
def test_lora_adapters_are_left_and_work_beside_condensed_layers():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["classifier"], r=2)
    model = peft.get_peft_model(tiny_bert(), lora)
    assert not any("lora_" in name for name in names(model))
    beside = peft.get_peft_model(sparsify(tiny_bert(), SRigLConfig(sparsity=0.8)), lora)
    beside(torch.randint(0, 100, (2, 8))).logits.sum().backward()


def held_elsewhere():
    """A stack whose forward walks a plain list, as Mask2Former's decoder; others stand in tuples, dicts and attributes."""

    class Walks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
            self.listed = [[self.layers[0], [self.layers[1]]]]
            self.paired = ((self.layers[2], "name"), {"deep": (self.layers[3],)})
            self.named = namedtuple("Named", ["first", "second"])(self.layers[4], 1)
            self.__dict__["hidden"] = self.layers[5]

        def forward(self, x):
            (first, (second,)), ((third, _), inside) = self.listed[0], self.paired
            for layer in (first, second, third, inside["deep"][0], self.named.first, self.hidden):
                x = layer(x)
            return x

    return Walks()


def used(model):
    """The layers that a forward pass calls."""
    called, hooks = [], []
    for module in [*model.layers, model.listed[0][0]]:
        hooks.append(module.register_forward_hook(lambda module, *_: called.append(module)))
    model(torch.randn(2, 8))
    for hook in hooks:
        hook.remove()
    return called


def test_layers_are_replaced_wherever_they_are_held():
    model = held_elsewhere()
    config = SRigLConfig(sparsity=0.5)
    sparsify(model, config)
    assert {id(m) for m in used(model)} == {id(m) for m in model.layers}
    assert all(type(m) is CondensedLinear for m in model.layers)
    model(torch.randn(2, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert type(model.named).__name__ == "Named"
    assert model.named.second == 1
    densify(model)
    assert {id(m) for m in used(model)} == {id(m) for m in model.layers}
    assert all(type(m) is nn.Linear for m in model.layers)


def test_mask2former_computes_with_the_layers_that_are_saved(tmp_path):
    backbone = SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[2] * 4,
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    widths = dict.fromkeys(
        ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward"), 32
    )
    config = Mask2FormerConfig(
        **widths,
        backbone_config=backbone,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=4,
        num_labels=3,
    )
    model = sparsify(Mask2FormerForUniversalSegmentation(config), SRigLConfig(sparsity=0.5)).eval()
    model.save_pretrained(tmp_path)
    loaded = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model(pixel_values=x).masks_queries_logits
        assert torch.equal(loaded(pixel_values=x).masks_queries_logits, want)
        block = next(m for m in loaded.modules() if isinstance(getattr(m, "layers", None), list))
        condensed = [m for part in block.layers for m in part.modules() if isinstance(m, CondensedLinear)]
        assert condensed
        assert all(any(m is other for other in loaded.modules()) for m in condensed)
        for layer in condensed:
            layer.weight.zero_()
        assert not torch.equal(loaded(pixel_values=x).masks_queries_logits, want)
