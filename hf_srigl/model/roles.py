"""What a layer is for in its model: an attention's input, a router, an output. Told by names and by structure."""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

# Compared with every part of a layer's full name, as some models wrap the linear layer (gemma4's `q_proj.linear`). Found by
# reading the names of all linear layers inside attention modules of transformers 5.23. The second row are fused projections
# under names of their own, the others what reaches the product of an attention besides: positions, offsets, scores, decays.
_ATTENTION_INPUT = re.compile(
    r"(^|_)(q|k|v|qk|qkv|kv|query|key|value|queries|keys|values|wq|wk|wv|wqkv)(_|$)"
    r"|^(c_attn|att_proj|in_proj(_\w+)?|attn_qkv|vision_proj|text_proj|receptance)$"
    r"|^(linear_pos|pos_proj|r_proj|relative_pos_embeddings|sampling_offsets|attention_weights|indexer)$"
    r"|^(head_logits_proj|head_weights_proj|conv_kernel_layer|a_proj|b_proj|sink_proj|attn_proj)$"
)
_ROUTER = re.compile(r"(^|_)router(_|$)|^gate$|^shared_expert_gate$")
# Heads inside the base model, which detectors have: classes and boxes of each decoder layer and of the encoder's proposals
_HEAD = re.compile(
    r"^(enc_|dec_|decoder_)?(class_embed|bbox_embed|score_head|bbox_head|class_head|class_labels_classifier|bbox_predictor)$"
)


def produces_attention_inputs(name: str) -> bool:
    """Whether a layer of this name produces queries, keys or values; such layers are never ablated.

    The paper's ViT collapses when they are (table 4 and section 4.2: 62 against 76 % on ImageNet at 90 %).

    Example:
        >>> [produces_attention_inputs(n) for n in ("attention.self.query", "attn.c_attn", "attn.q_proj.linear", "mlp.fc1")]
        [True, True, True, False]
    """
    return any(_ATTENTION_INPUT.search(part) for part in name.lower().split("."))


def is_router(name: str) -> bool:
    """Whether a layer of this name sends tokens to experts, or weighs a shared one; dense by default and never ablated.

    Example:
        >>> [is_router(name) for name in ("mlp.router.classifier", "mlp.gate", "mlp.shared_expert_gate", "mlp.gate_proj")]
        [True, True, True, False]
    """
    return any(_ROUTER.search(part) for part in name.lower().split("."))


def output_heads(model: nn.Module) -> set[str]:
    """Names of modules that produce a model's outputs, found from the structure of the `PreTrainedModel`s in it.

    A head stands outside the base model, but not inside a block of a stack of blocks (the decoder that ViTMAE trains), or is
    the output embeddings, or a direct child of a model that is its own base (CLIP's projections), or the classifier of a
    wrapped timm model, or is named as detectors name the classes and boxes that each layer predicts.

    Example:
        >>> output_heads(nn.Sequential(nn.Linear(2, 2)))
        set()
    """
    heads: set[str] = set()
    for prefix, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            heads.update(f"{prefix}.{name}".strip(".") for name in _heads_of(part))
    return heads


def _heads_of(part: PreTrainedModel) -> set[str]:
    base, output_embeddings = part.base_model, part.get_output_embeddings()
    inside = {id(module) for module in base.modules()}
    modules = dict(part.named_modules())
    blocks = tuple(
        f"{name}."
        for name in modules
        if name and isinstance(modules[name.rpartition(".")[0]], nn.ModuleList) and next(modules[name].children(), None)
    )
    classifier = _timm_classifier(part)
    heads = set()
    for name, module in modules.items():
        own_child = base is part and name and "." not in name
        outside = base is not part and id(module) not in inside and not name.startswith(blocks)
        named = any(_HEAD.search(piece) for piece in name.split("."))
        if own_child or outside or named or module is output_embeddings or module is classifier:
            heads.add(name)
    return heads


def _timm_classifier(part: PreTrainedModel) -> nn.Module | None:
    if not type(part).__name__.startswith("TimmWrapper"):
        return None
    timm_model = part.get_submodule("timm_model")
    return timm_model.get_classifier()  # of every model that timm creates
