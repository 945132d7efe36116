"""What a ramp leaves in files when it is resumed, loaded by hand, or cannot work at all."""

import copy

import pytest
import torch
from torch import nn, optim
from transformers import AutoModelForSequenceClassification, Trainer

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigL, SRigLCallback, SRigLConfig, densify, sparsify
from hf_srigl.model.attachment import condensed_layers, config_of, is_on_ramp
from hf_srigl.model.masks import condense_under, condense_zeros

CONFIG = SRigLConfig.for_finetuning(0.75, update_every=2)


def trained(path, stock=False, resume=None, **arguments):
    args = training_args(path, **{"max_steps": 12, "save_strategy": "steps", "save_steps": 4} | arguments)
    if stock:
        trainer = Trainer(sparsify(tiny_bert(), CONFIG), args, train_dataset=Toy(), callbacks=[SRigLCallback()])
    else:
        trainer = SparseTrainer(model=tiny_bert(), args=args, train_dataset=Toy(), srigl_config=CONFIG)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("stock", [False, True])
def test_a_run_resumed_after_its_last_update_saves_what_loads(tmp_path, stock):
    trained(tmp_path / "first", stock)
    resumed = trained(tmp_path / "second", stock, resume=str(tmp_path / "first" / "checkpoint-12"), max_steps=13)
    resumed.save_model(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert not is_on_ramp(model)
    for name, layer in condensed_layers(resumed.model).items():
        assert torch.equal(model.get_submodule(name).to_dense(), layer.to_dense())


def test_a_state_loaded_by_hand_saves_what_loads(tmp_path):
    finished = trained(tmp_path).model
    model = sparsify(tiny_bert(), CONFIG)
    model.load_state_dict(copy.deepcopy(finished.state_dict()))
    model.save_pretrained(tmp_path / "out")
    assert not is_on_ramp(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"))
    densify(model)
    assert not model._load_state_dict_post_hooks


def test_a_ramp_of_a_part_is_refused_at_the_start():
    model = tiny_bert()
    sparsify(model.bert, CONFIG)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"only a part of it was sparsified.*target_modules"):
        SRigL(model, optimizer, total_steps=20)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's call into transformers
def test_a_ramp_under_adapters_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    base = sparsify(tiny_bert(), SRigLConfig.for_finetuning(0.75, exclude_modules=["query"]))
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    trainer = Trainer(model, training_args(tmp_path), train_dataset=Toy(), callbacks=[SRigLCallback()])
    with pytest.raises(ValueError, match="PEFT saves only the adapters"):
        trainer.train()


def test_given_masks_are_final(tmp_path):
    pruned = tiny_bert()
    for layer in pruned.bert.encoder.layer:
        layer.intermediate.dense.weight.data[:, 8:] = 0
    condense_zeros(pruned, SRigLConfig.for_finetuning(0.9))
    assert not is_on_ramp(pruned)
    assert config_of(pruned).ramp_until is None
    mask = torch.eye(64, 32).bool() | torch.eye(64, 32).roll(32, 0).bool()
    own = tiny_bert()
    config = SRigLConfig(structure="unstructured", gamma_sal=None, target_modules=["intermediate.dense"])
    condense_under(own, config, lambda name, w: mask)
    own.save_pretrained(tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).is_quantized


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own jvp
def test_forward_mode_differentiation_is_refused():
    layer = sparsify(nn.Sequential(nn.Linear(8, 4)), SRigLConfig(sparsity=0.5)).requires_grad_(False)
    x = torch.randn(2, 8)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(layer, (x,), (x,))
    expected = layer(-x.clone())
    assert torch.equal(layer(torch._neg_view(x)), expected)
    assert torch.equal(layer[0](input=-x), expected)
