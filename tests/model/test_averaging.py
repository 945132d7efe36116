"""Averages of condensed models, and ways of looking at a model that need it dense."""

import pytest
import torch
from torch import nn

from hf_srigl import SRigLConfig, densify, sparsify
from hf_srigl.model.averaging import average_models

CONFIG = SRigLConfig(sparsity=0.5, exclude_modules=["1"])


def model(seed):
    torch.manual_seed(seed)
    return sparsify(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2)), CONFIG)


def test_the_average_is_that_of_the_dense_forms_cut_to_the_fan_in():
    one, other = model(0), model(1)
    average = average_models([one, other])
    mean = (one[0].to_dense() + other[0].to_dense()) / 2
    kept = average[0].mask()
    assert average[0].fan_in == 4
    assert torch.equal(average[0].to_dense()[kept], mean[kept])
    assert (mean.abs().masked_fill(kept, 0).amax(1) <= mean.abs().masked_fill(~kept, 9).amin(1)).all()
    assert torch.equal(average[1].weight, (one[1].weight + other[1].weight) / 2)


def test_averages_of_nothing_and_of_dense_models_are_refused():
    with pytest.raises(ValueError, match="at least one condensed model"):
        average_models([])
    with pytest.raises(ValueError, match="expected condensed models"):
        average_models([densify(model(0))])
    with pytest.raises(ValueError, match="models of one architecture"):
        average_models([model(0), sparsify(nn.Sequential(nn.Linear(8, 8)), SRigLConfig(sparsity=0.5))])


@pytest.mark.filterwarnings("ignore")  # tracing warns of the check of sizes, and of its own end
def test_tracing_in_eval_mode_works_with_gradients_on():
    sparse, x = model(0).eval(), torch.randn(3, 8)
    assert torch.equal(torch.jit.trace(sparse, (x,))(x), sparse(x))


@pytest.mark.filterwarnings("ignore")  # the older exporter is deprecated; the newer needs another package
def test_onnx_says_densify():
    with pytest.raises(NotImplementedError, match=r"densify\(\) the model before torch.onnx.export"):
        torch.onnx.export(model(0).eval(), (torch.randn(3, 8),), "unwritten.onnx", dynamo=False)


def test_torch_func_says_densify():
    sparse, x = model(0), torch.randn(3, 8)
    with pytest.raises(NotImplementedError, match=r"torch.func .* densify\(\) the model first"):
        torch.func.grad(lambda p: torch.func.functional_call(sparse, p, (x,)).sum())(dict(sparse.named_parameters()))
