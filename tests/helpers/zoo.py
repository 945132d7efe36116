"""Tiny random models of every supported architecture, and a slow, independent reading of the condensed format."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_srigl import CondensedLinear, SRigL, SRigLConfig, sparsify

# a batch of pixels, token ids and sound frames for all models
VOCAB, LENGTH = 96, 7
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 48, "max_position_embeddings": 32}
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
VISION |= {"image_size": 16, "patch_size": 8}

BERT = {"query", "key", "value", "dense"}
LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
VIT = {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}
CLIP = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def ids(batch=2, length=LENGTH, seed=0):
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded():
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, -2:] = 0
    return {"input_ids": ids(), "attention_mask": mask}


def pixels(size=16):
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))}


def sound():
    return {"input_features": torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))}


@dataclass(frozen=True, eq=False)
class Case:
    """An architecture with a task head. Names are last components of linear layers' names."""

    name: str
    model_class: type
    config: Callable[[], Any]
    auto: type  # loads the model with its head
    inputs: Callable[[], dict[str, torch.Tensor]]
    targets: set[str]
    never_ablated: set[str]
    heads: set[str]  # linear layers that stay dense
    headless: type = hf.AutoModel
    layers: int = 0  # how many targets
    generates: bool = False

    def build(self, seed=0):
        """A dense model; weights large enough for every layer to matter, biases and norms away from 0 and 1."""
        torch.manual_seed(seed)
        model = self.model_class(self.config()).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim >= 2:
                    p.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
                elif p.ndim == 1:
                    p.add_(0.1 * torch.randn(p.shape, generator=generator))
        return model


def clip_config(**kwargs):
    vision = {**VISION, "projection_dim": 24}
    return hf.CLIPConfig(text_config=TEXT | IDS, vision_config=vision, projection_dim=24, **kwargs)


def whisper_config():
    return hf.WhisperConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=8,
        max_target_positions=16, decoder_start_token_id=1, **IDS,
    )  # fmt: skip


def t5_config(**kwargs):
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    return hf.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2, **kwargs)


QKV, PROJ = {"query", "key", "value"}, {"q_proj", "k_proj", "v_proj"}
DISTIL = {"vocab_size": VOCAB, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 32}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
MODERN = IDS | {"cls_token_id": 1, "sep_token_id": 2}


def text_and_decoder():
    return padded() | {"decoder_input_ids": ids(seed=1)}


CASES = [
    Case(
        "bert", hf.BertForSequenceClassification, lambda: hf.BertConfig(**TEXT), hf.AutoModelForSequenceClassification,
        padded, BERT, QKV, {"classifier"}, layers=7,
    ),
    Case(
        "bert-mlm", hf.BertForMaskedLM, lambda: hf.BertConfig(**TEXT), hf.AutoModelForMaskedLM,
        padded, BERT, QKV, {"dense", "decoder"}, layers=6,  # cls.predictions.transform.dense belongs to the head
    ),
    Case(
        "roberta", hf.RobertaForSequenceClassification, lambda: hf.RobertaConfig(**TEXT | IDS),
        hf.AutoModelForSequenceClassification, padded, BERT, QKV, {"dense", "out_proj"}, layers=6,
    ),
    Case(
        "distilbert", hf.DistilBertForSequenceClassification, lambda: hf.DistilBertConfig(**DISTIL),
        hf.AutoModelForSequenceClassification, padded, {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"},
        {"q_lin", "k_lin", "v_lin"}, {"pre_classifier", "classifier"}, layers=6,
    ),
    Case(  # its two layers share their weights
        "albert", hf.AlbertForSequenceClassification,
        lambda: hf.AlbertConfig(**TEXT | IDS | {"num_hidden_layers": 2, "embedding_size": 16}),
        hf.AutoModelForSequenceClassification, padded,
        QKV | {"dense", "ffn", "ffn_output", "embedding_hidden_mapping_in"}, QKV, {"pooler", "classifier"}, layers=7,
    ),
    Case(
        "modernbert", hf.ModernBertForSequenceClassification, lambda: hf.ModernBertConfig(**TEXT | MODERN),
        hf.AutoModelForSequenceClassification, padded, {"Wqkv", "Wo", "Wi"}, {"Wqkv"}, {"dense", "classifier"}, layers=4,
    ),
    Case(
        "gpt2", hf.GPT2LMHeadModel, lambda: hf.GPT2Config(**GPT2 | IDS), hf.AutoModelForCausalLM, padded,
        {"c_attn", "c_proj", "c_fc"}, {"c_attn"}, {"lm_head"}, layers=4, generates=True,
    ),
    Case(
        "llama", hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**TEXT | IDS, num_key_value_heads=1),
        hf.AutoModelForCausalLM, padded, LLAMA, PROJ, {"lm_head"}, layers=7, generates=True,
    ),
    Case(
        "llama-tied", hf.LlamaForCausalLM,
        lambda: hf.LlamaConfig(**TEXT | IDS, num_key_value_heads=1, tie_word_embeddings=True),
        hf.AutoModelForCausalLM, padded, LLAMA, PROJ, {"lm_head"}, layers=7, generates=True,
    ),
    Case(
        "qwen2", hf.Qwen2ForCausalLM, lambda: hf.Qwen2Config(**TEXT | IDS, num_key_value_heads=1),
        hf.AutoModelForCausalLM, padded, LLAMA, PROJ, {"lm_head"}, layers=7, generates=True,
    ),
    Case(
        "qwen2-tied", hf.Qwen2ForCausalLM,
        lambda: hf.Qwen2Config(**TEXT | IDS, num_key_value_heads=1, tie_word_embeddings=True),
        hf.AutoModelForCausalLM, padded, LLAMA, PROJ, {"lm_head"}, layers=7, generates=True,
    ),
    Case(
        "t5", hf.T5ForConditionalGeneration, t5_config, hf.AutoModelForSeq2SeqLM, text_and_decoder,
        {"q", "k", "v", "o", "wi", "wo"}, {"q", "k", "v"}, {"lm_head"}, layers=16, generates=True,
    ),
    Case(
        "t5-gated-untied", hf.T5ForConditionalGeneration,
        lambda: t5_config(feed_forward_proj="gated-gelu", tie_word_embeddings=False), hf.AutoModelForSeq2SeqLM,
        text_and_decoder, {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}, {"q", "k", "v"}, {"lm_head"}, layers=18,
        generates=True,
    ),
    Case(
        "vit", hf.ViTForImageClassification, lambda: hf.ViTConfig(**VISION), hf.AutoModelForImageClassification,
        pixels, VIT, PROJ, {"classifier"}, layers=6,
    ),
    Case(
        "deit", hf.DeiTForImageClassificationWithTeacher, lambda: hf.DeiTConfig(**VISION),
        hf.DeiTForImageClassificationWithTeacher, pixels, VIT, PROJ, {"cls_classifier", "distillation_classifier"},
        layers=6,
    ),
    Case(
        "dinov2", hf.Dinov2ForImageClassification, lambda: hf.Dinov2Config(**VISION),
        hf.AutoModelForImageClassification, pixels, VIT, PROJ, {"classifier"}, layers=6,
    ),
    Case(
        "dinov2-gated", hf.Dinov2ForImageClassification, lambda: hf.Dinov2Config(**VISION, use_swiglu_ffn=True),
        hf.AutoModelForImageClassification, pixels, LLAMA, PROJ, {"classifier"}, layers=7,
    ),
    Case(
        "clip", hf.CLIPModel, clip_config, hf.AutoModel, lambda: padded() | pixels(), CLIP, PROJ,
        {"visual_projection", "text_projection"}, layers=12,
    ),
    Case(
        "clip-image", hf.CLIPForImageClassification, lambda: clip_config(num_labels=3),
        hf.AutoModelForImageClassification, pixels, CLIP, PROJ, {"classifier"}, layers=6,
    ),
    Case(
        "swin", hf.SwinForImageClassification, lambda: hf.SwinConfig(**SWIN), hf.AutoModelForImageClassification,
        lambda: pixels(32), VIT | {"reduction"}, PROJ, {"classifier"}, layers=13,
    ),
    Case(
        "whisper", hf.WhisperForConditionalGeneration, whisper_config, hf.AutoModelForSpeechSeq2Seq,
        lambda: sound() | {"decoder_input_ids": ids(seed=1)}, CLIP, PROJ, {"proj_out"}, layers=16, generates=True,
    ),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}

CONFIG = SRigLConfig(sparsity=0.75, update_every=2, gamma_sal=0.9, drop_fraction=0.5, stop_updates_at=1.0)


@functools.cache
def fresh(name):
    """The sparsified model, not trained. Shared between tests: copy before changing it."""
    return sparsify(BY_NAME[name].build(), CONFIG)


@functools.cache
def trained(name):
    """The sparsified model after two topology updates, with ablated neurons. Shared: copy before changing it."""
    model, _ = train(BY_NAME[name], sparsify(BY_NAME[name].build(), CONFIG))
    return model.eval()


def train(case, model, steps=4):
    """A few AdamW steps with `SRigL`; returns the model and the reports of its updates."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    srigl = SRigL(model, optimizer, total_steps=2 * steps)
    reports = []
    for _ in range(steps):
        loss_of(model, case.inputs()).backward()
        optimizer.step()
        reports.append(srigl.step())
        optimizer.zero_grad()
    srigl.close()
    return model, [report for report in reports if report is not None]


def tensors_of(output):
    """All floating point tensors of a model's output, as one vector."""
    values = [value for value in output.to_tuple() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return torch.cat([value.float().reshape(-1) for value in values])


@torch.no_grad()
def run(model, inputs):
    return tensors_of(model(**inputs))


def loss_of(model, inputs):
    """A scalar that depends on every output."""
    y = tensors_of(model(**inputs))
    return (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(9))).mean()


def condensed(model):
    return {name: module for name, module in model.named_modules() if type(module) is CondensedLinear}


def expand(values, indices, active, in_features):
    """Condensed -> dense (N, K), slot by slot in plain Python, from the format's description alone."""
    used = [i for i in indices.tolist() if i >= 0]
    rows = [n for n, alive in enumerate(active.tolist()) if alive]
    fan_in = len(used) // len(rows)
    dense = torch.zeros(len(active), in_features, dtype=values.dtype)
    for slot, column in enumerate(used):
        dense[rows[slot // fan_in], column] = values[slot].item()
    return dense


def dense_twin(case, model):
    """A plain model, built anew, with the weights of `model` in dense form; independent of `densify`."""
    twin = case.build(seed=1)
    layers = condensed(model)
    state = {}
    for name, tensor in model.state_dict().items():
        owner, _, tensor_name = name.rpartition(".")
        if owner in layers and tensor_name in ("weight", "indices", "active"):
            layer = layers[owner]
            dense = expand(layer.weight.detach(), layer.indices, layer.active, layer.in_features)
            state[f"{owner}.weight"] = dense.t().contiguous() if layer.transposed else dense
        else:
            state[name] = tensor.clone()
    twin.load_state_dict(state)
    return twin.eval()


def masked_twin(case, model):
    """A copy of the dense model that `model` was made from, zero where `layer.mask()` is False."""
    twin = copy.deepcopy(case.build())
    modules = dict(twin.named_modules())
    with torch.no_grad():
        for name, layer in condensed(model).items():
            mask = layer.mask()
            weight = modules[name].weight
            weight.masked_fill_(~(mask.t() if type(modules[name]) is Conv1D else mask), 0.0)
    return twin


def linears(model):
    return {name: module for name, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)}


def assert_same_tensors(model, other):
    """Both models' states, bit for bit: also a parameter that its model left uninitialized, which may hold NaN."""
    a, b = model.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(bits(tensor), bits(b[name])), name


def bits(tensor):
    """The bytes of a tensor, in one row."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
