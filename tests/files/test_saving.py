"""Saving over an older model: what is loaded afterwards is what was saved last."""

import copy
import os

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigLConfig, densify, sparsify

WHOLE, SHARDS = {}, {"max_shard_size": "20KB"}


def changed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return model


def holds(folder, model):
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    return all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("first", "second"), [(WHOLE, SHARDS), (SHARDS, WHOLE), (SHARDS, SHARDS), (WHOLE, WHOLE)])
@pytest.mark.parametrize("dense_before", [False, True])
def test_the_last_save_wins(tmp_path, first, second, dense_before):
    model = sparsify(tiny_bert(), SRigLConfig(sparsity=0.5))
    (densify(copy.deepcopy(model)) if dense_before else model).save_pretrained(tmp_path, **first)
    changed(model).save_pretrained(tmp_path, **second)
    assert holds(tmp_path, model)
    assert ("model.safetensors" in os.listdir(tmp_path)) == (second is WHOLE)
    assert ("model.safetensors.index.json" in os.listdir(tmp_path)) == (second is SHARDS)


def test_what_was_removed_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("hf_srigl.files.saving.logger.warning", said.append)
    model = sparsify(tiny_bert(), SRigLConfig(sparsity=0.5))
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert said == []
    model.save_pretrained(tmp_path, **SHARDS)
    (line,) = said
    assert str(tmp_path / "model.safetensors") in line


def test_variants_do_not_touch_each_other(tmp_path):
    model = sparsify(tiny_bert(), SRigLConfig(sparsity=0.5))
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="half")
    model.save_pretrained(tmp_path, variant="half", **SHARDS)
    assert "model.safetensors" in os.listdir(tmp_path)
    assert "model.half.safetensors" not in os.listdir(tmp_path)


def test_copies_save_themselves_and_a_dense_model_saves_as_ever(tmp_path):
    model = sparsify(tiny_bert(), SRigLConfig(sparsity=0.5))
    other = changed(copy.deepcopy(model))
    other.save_pretrained(tmp_path)
    assert holds(tmp_path, other)
    assert not holds(tmp_path, model)
    assert "save_pretrained" not in vars(densify(model))


def test_the_trainer_too(tmp_path):
    trainer = SparseTrainer(
        tiny_bert(), training_args(tmp_path / "out"), train_dataset=Toy(), srigl_config=SRigLConfig(sparsity=0.5)
    )
    trainer.model.save_pretrained(tmp_path / "m", **SHARDS)
    changed(trainer.model)
    trainer.save_model(tmp_path / "m")
    assert holds(tmp_path / "m", trainer.model)
