"""What a layer is for: attention inputs and routers by every part of their names, heads by structure."""

import pytest
import torch
from torch import nn, optim
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from conftest import tiny_bert
from hf_srigl import CondensedLinear, SRigL, SRigLConfig, sparsify
from hf_srigl.model.roles import is_router, output_heads, produces_attention_inputs
from hf_srigl.model.targets import find_targets, may_ablate

INPUTS = """
    attn.att_proj  attention.queries_keys_values.linear  self_attn.q_proj.linear  attention.v_proj.linear
    linear_attn.in_proj_qkvz  linear_attn.in_proj_ba  fusion.attn.vision_proj  fusion.attn.values_text_proj  attn.qkv
    EncDecAttention.k  attn.Wk  self_attn.kv_a_proj_with_mqa  self_attn.indexer.weights_proj  encoder_attn.sampling_offsets
    self_attn.linear_pos  att.receptance  self.head_logits_proj  self.conv_kernel_layer  linear_attn.b_proj
""".split()
OTHERS = "mlp.fc1 mlp.gate_proj mlp.up_proj attn.o_proj attn.proj output.dense mlp.c_proj attention.out_proj".split()
ROUTERS = """
    mlp.router.classifier  experts.router.layer  ffn.router.layer  mlp.gate  mlp.gate.wg  mlp.shared_expert_gate  router.proj
    mlp.gate.router_mlp.out_proj
""".split()


@pytest.mark.parametrize("name", INPUTS)
def test_what_reaches_an_attention_is_told_by_any_part_of_the_name(name):
    assert produces_attention_inputs(f"model.layers.3.{name}")
    assert not may_ablate(f"model.layers.3.{name}", SRigLConfig())


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_not_taken_for_them(name):
    assert not produces_attention_inputs(f"model.layers.3.{name}")
    assert not is_router(f"model.layers.3.{name}")
    assert may_ablate(f"model.layers.3.{name}", SRigLConfig())


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_are_never_ablated(name):
    assert is_router(f"model.layers.3.{name}")
    assert not may_ablate(f"model.layers.3.{name}", SRigLConfig())


SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_routers_stay_dense_unless_they_are_named():
    switch = SwitchTransformersConfig(
        vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    )  # fmt: skip
    qwen = Qwen2MoeConfig(
        **SMALL, num_key_value_heads=2, moe_intermediate_size=32, shared_expert_intermediate_size=32, num_experts=4
    )
    for model in (SwitchTransformersForConditionalGeneration(switch), Qwen2MoeForCausalLM(qwen)):
        routers = [name for name, m in model.named_modules() if type(m) is nn.Linear and is_router(name)]
        assert routers
        assert not set(routers) & set(find_targets(model, SRigLConfig()))
        assert routers[0] in find_targets(model, SRigLConfig(target_modules=[routers[0]]))


def test_heads_of_a_detector_stay_dense():
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    model = RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone,
            encoder_hidden_dim=16,
            encoder_in_channels=[8, 16, 16],
            feat_strides=[8, 16, 32],
            encoder_layers=1,
            encoder_ffn_dim=16,
            encoder_attention_heads=2,
            d_model=16,
            num_queries=4,
            decoder_layers=2,
            decoder_in_channels=[16, 16, 16],
            decoder_ffn_dim=16,
            decoder_attention_heads=2,
            num_labels=3,
            num_denoising=0,
        )
    )
    targets = find_targets(model, SRigLConfig())
    predicting = [n for n, m in model.named_modules() if type(m) is nn.Linear and m.out_features in (3, 4)]
    assert len(predicting) >= 6
    assert not set(predicting) & set(targets)
    assert any(name.endswith("fc1") for name in targets)


def test_the_classifier_of_a_wrapped_timm_model_stays_dense():
    class Timm(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
            self.fc = nn.Linear(8, 3)

        def get_classifier(self):
            return self.fc

    class TimmWrapperForTest(PreTrainedModel):
        config_class = PreTrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.timm_model = Timm()

    found = find_targets(TimmWrapperForTest(PreTrainedConfig()), SRigLConfig())
    assert list(found) == ["timm_model.blocks.0", "timm_model.blocks.1"]


def test_decoders_that_are_trained_are_no_heads():
    mae = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=16,
            patch_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            decoder_hidden_size=16,
            decoder_intermediate_size=32,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
        )
    )
    found = find_targets(mae, SRigLConfig())
    assert sum(name.startswith("decoder.decoder_layers.") for name in found) >= 10
    assert "decoder.decoder_pred" not in found


def test_the_decoder_of_clipseg_learns_sparsely():
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    words = {"vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2}
    model = CLIPSegForImageSegmentation(
        CLIPSegConfig(
            text_config={**tower, **words},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=16,
            reduce_dim=16,
            extract_layers=[0, 1, 2],
            decoder_num_attention_heads=2,
            decoder_intermediate_size=24,
        )
    )
    sparsify(model, SRigLConfig(sparsity=0.5, update_every=1, stop_updates_at=1.0)).train()
    srigl = SRigL(model, optim.AdamW(model.parameters()), total_steps=9)
    batch = {"input_ids": torch.randint(3, 30, (2, 6)), "pixel_values": torch.randn(2, 3, 16, 16)}
    model(**batch, labels=torch.rand(2, 16, 16).round()).loss.backward()
    srigl.optimizer.step()
    assert {row.name.split(".")[0] for row in srigl.step().layers} == {"decoder"}  # CLIP itself runs without gradients


def test_an_output_named_as_a_target_is_sparse_and_keeps_its_classes():
    torch.manual_seed(0)
    config = SRigLConfig(
        sparsity=0.9,
        target_modules=["classifier", "intermediate.dense"],
        gamma_sal=0.95,
        update_every=1,
        stop_updates_at=1.0,
    )
    model = sparsify(tiny_bert(num_labels=9), config)
    assert isinstance(model.classifier, CondensedLinear)
    assert "classifier" in output_heads(model)
    srigl = SRigL(model, optim.AdamW(model.parameters(), lr=1e-2), total_steps=20)
    for _ in range(6):
        ids = torch.randint(0, 100, (8, 8))
        model(input_ids=ids, labels=torch.randint(0, 9, (8,))).loss.backward()
        srigl.optimizer.step()
        srigl.step()
        srigl.optimizer.zero_grad()
    assert bool(model.classifier.active.all())
    assert not all(bool(m.active.all()) for m in model.modules() if isinstance(m, CondensedLinear))
