"""init="wanda": scores by hand, calibration by every kind of batch, in the Trainer, and where it must refuse."""

import pytest
import torch
from datasets import Dataset as HFDataset
from datasets import IterableDataset
from rounding import assert_close_sum
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForSequenceClassification

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigLConfig, sparsify
from hf_srigl.model.attachment import condensed_layers
from hf_srigl.model.calibration import input_norms

WANDA = SRigLConfig(sparsity=0.75, init="wanda")


def masks(model):
    return {name: layer.mask() for name, layer in condensed_layers(model).items()}


def one_layer(weight):
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    model[0].weight.data = torch.tensor(weight)
    return model


def test_by_hand():
    """Norms 1, 2, 5, 0: the products of row 0 are 4, 6, 5, 0 and of row 1 are 1, 2, 2.5, 0."""
    weight = [[4.0, -3.0, 1.0, 9.0], [1.0, 1.0, -0.5, 9.0]]
    x = torch.tensor([[1.0, 0, 3, 0], [0, 2, -4, 0]])
    model = sparsify(one_layer(weight), WANDA, calibration=[x])
    assert model[0].to_dense().tolist() == [[0, -3.0, 0, 0], [0, 0, -0.5, 0]]
    magnitude = sparsify(one_layer(weight), SRigLConfig(sparsity=0.75))
    assert magnitude[0].to_dense().tolist() == [[0, 0, 0, 9.0], [0, 0, 0, 9.0]]


def test_norms_add_up_over_batches_and_leave_the_model_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.9), nn.Linear(5, 3)).double()
    model[0].eval()
    x = torch.randn(12, 7, 6).double()
    whole = input_norms(model, {"0": model[0], "2": model[2]}, [x])
    parts = input_norms(model, {"0": model[0], "2": model[2]}, DataLoader(TensorDataset(x), batch_size=5))
    assert whole["0"].shape == (6,)
    squares = x.square().sum((0, 1))  # of 84 rows
    assert_close_sum(whole["0"].square(), squares, terms=84, size=squares)
    # no dropout, although the module is in training mode
    assert_close_sum(parts["2"].square(), whole["2"].square(), terms=84, size=whole["2"].square())
    assert [m.training for m in model] == [False, True, True]
    assert not model[0]._forward_pre_hooks


def test_the_trainer_takes_its_own_training_data(tmp_path):
    def first(dataset=None, config=WANDA, **arguments):
        args = training_args(tmp_path, **arguments)
        data = Toy(200) if dataset is None else dataset
        return masks(SparseTrainer(model=tiny_bert(), args=args, train_dataset=data, srigl_config=config).model)

    found = first()
    magnitude = masks(sparsify(tiny_bert(), SRigLConfig(sparsity=0.75)))
    assert any(not torch.equal(found[name], magnitude[name]) for name in found)
    again = first()
    assert all(torch.equal(found[name], again[name]) for name in found)
    rows = [{name: value.tolist() for name, value in row.items()} | {"note": "x"} for row in Toy(200)]
    columns = first(HFDataset.from_list(rows))  # the column that the model does not take is left out
    assert all(torch.equal(found[name], columns[name]) for name in found)
    stream = first(IterableDataset.from_generator(lambda: iter(rows)), max_steps=4)
    assert any(not torch.equal(stream[name], magnitude[name]) for name in found)


def test_the_trainer_with_model_init_trains_and_saves(tmp_path):
    args = training_args(tmp_path)
    trainer = SparseTrainer(model_init=lambda: tiny_bert(), args=args, train_dataset=Toy(), srigl_config=WANDA)
    assert condensed_layers(trainer.model)
    trainer.train()
    trainer.save_model(tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.quantization_config.srigl.init == "wanda"


def test_it_is_refused_without_data_and_data_without_it(tmp_path):
    with pytest.raises(ValueError, match="init='wanda' needs data"):
        sparsify(tiny_bert(), WANDA)
    with pytest.raises(ValueError, match="calibration data is for init='wanda' only"):
        sparsify(tiny_bert(), SRigLConfig(), calibration=[])
    with pytest.raises(ValueError, match="needs at least one batch"):
        sparsify(tiny_bert(), WANDA, calibration=[])
    model = tiny_bert()
    with pytest.raises(ValueError, match="NaN or inf"):
        sparsify(one_layer([[1.0] * 4] * 2), WANDA, calibration=[torch.full((1, 4), torch.inf)])
    with pytest.raises(ValueError, match="must be a dict, list, tuple or tensor, got int"):
        sparsify(model, WANDA, calibration=[3])
    assert not condensed_layers(model)  # nothing has changed
    unused = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    unused.forward = lambda x: unused["a"](x)
    with pytest.raises(ValueError, match="layer b: no calibration batch reached it"):
        sparsify(unused, WANDA, calibration=[torch.ones(2, 4)])
    tiny_bert().save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="load the model dense first"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense", quantization_config=WANDA)
    with pytest.raises(ValueError, match="needs a train_dataset"):
        SparseTrainer(model=tiny_bert(), args=training_args(tmp_path), srigl_config=WANDA)
    with pytest.raises(ValueError, match="a ramp from dense has nothing to choose"):
        SRigLConfig(init="wanda", ramp_until=0.5)
