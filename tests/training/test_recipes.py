"""The recipes, and the warnings about what the evidence speaks against."""

import logging

import pytest
import torch
from torch import nn, optim
from transformers import AutoModelForSequenceClassification

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigL, SRigLConfig, sparsify
from hf_srigl.model import surgery
from hf_srigl.training import callback


def test_recipes_fill_in_and_options_win():
    recipe = SRigLConfig.for_finetuning(0.7)
    assert recipe == SRigLConfig(sparsity=0.7, ramp_until=0.6, update_every=0.04, gamma_sal=None, distribution="erk")
    assert SRigLConfig.for_finetuning(0.7, ramp_until=0.5, seed=3).to_dict() == {
        **recipe.to_dict(), "ramp_until": 0.5, "seed": 3,
    }  # fmt: skip
    assert SRigLConfig.for_pretraining(0.8, update_every=50) == SRigLConfig(
        sparsity=0.8, init="random", gamma_sal=0.3, update_every=50
    )
    with pytest.raises(TypeError, match="sparsty"):
        SRigLConfig.for_finetuning(sparsty=0.5)


@pytest.fixture
def said(monkeypatch):
    """What the Trainer's callback and `sparsify` warn of."""
    messages = []
    for module in (callback, surgery):
        monkeypatch.setattr(module.logger, "warning_once", messages.append)
    return messages


def test_a_random_start_of_a_pretrained_model_is_warned_of(tmp_path, said):
    tiny_bert().save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    sparsify(model, SRigLConfig(init="random"))
    assert len(said) == 1
    assert "was loaded from" in said[0]
    assert "init='random' draws new weights" in said[0]
    sparsify(AutoModelForSequenceClassification.from_pretrained(tmp_path), SRigLConfig(sparsity=0.5))
    sparsify(tiny_bert(), SRigLConfig(init="random"))
    assert len(said) == 1


@pytest.mark.parametrize(("rate", "warned"), [(5e-5, True), (1e-3, False)])
def test_the_default_learning_rate_is_warned_of(tmp_path, said, rate, warned):
    args = training_args(tmp_path, learning_rate=rate, max_steps=1)
    SparseTrainer(model=tiny_bert(), args=args, train_dataset=Toy(), srigl_config=SRigLConfig()).train()
    assert [message.startswith("The learning rate is the Trainer's default") for message in said] == [True] * warned


@pytest.mark.parametrize(
    ("every", "total", "updates"), [(100, 1000, 7), (100, 1400, None), (0.04, 30, None), (None, 5, None), (9, 10, 0)]
)
def test_few_updates_are_warned_of(caplog, every, total, updates):
    model = sparsify(nn.Sequential(nn.Linear(8, 8)), SRigLConfig(sparsity=0.5, update_every=every))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, logger="hf_srigl.training.srigl"):
        srigl = SRigL(model, optimizer, total_steps=total)
    if updates is None:
        assert caplog.text == ""
        return
    assert f"leaves {updates} topology updates in {total} steps" in caplog.text
    count = 0
    for _ in range(total):
        model(torch.ones(2, 8)).sum().backward()
        count += srigl.step() is not None
    assert count == updates
