"""The unstructured baseline: RigL's rule by hand and by a slow oracle, the layer against nn.Linear, training, files."""

import random

import pytest
import torch
from torch import nn, optim
from transformers import AutoModelForSequenceClassification

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigL, SRigLConfig, densify, sparsify, sparsity_report
from hf_srigl.layers.unstructured import UnstructuredLinear
from hf_srigl.model.attachment import condensed_layers
from hf_srigl.rule.rigl import rigl_mask

CONFIG = SRigLConfig(
    sparsity=0.75, structure="unstructured", gamma_sal=None, update_every=3, drop_fraction=0.5, stop_updates_at=1.0
)


def test_by_hand():
    """Six of twelve are active; half are dropped: 1, 2 and 3. Grown: the gradients 9, 8, and 7, which was just dropped."""
    weight = torch.tensor([[6.0, 5.0, 4.0, 3.0], [2.0, 0, 0, 0], [0, 0, 0, 1.0]])
    grad = torch.tensor([[0.0, 0, 0, -7.0], [0, 9.0, 1.0, 0], [0, 0, -8.0, 6.0]])
    new = rigl_mask(weight, weight != 0, grad, drop_fraction=0.5)
    assert new.int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_is_the_slow_one(seed):
    rng = random.Random(seed)
    n, k, drop = rng.randint(1, 9), rng.randint(1, 9), rng.choice([0.0, 0.3, 0.5, 1.0])
    weight = torch.tensor([[rng.randint(-3, 3) for _ in range(k)] for _ in range(n)]).float()
    grad = torch.tensor([[rng.randint(-3, 3) for _ in range(k)] for _ in range(n)]).float()
    mask = torch.tensor([[rng.random() < 0.5 for _ in range(k)] for _ in range(n)])
    w, g, m = weight.view(-1).tolist(), grad.view(-1).tolist(), mask.view(-1).tolist()
    active = [i for i in range(n * k) if m[i]]
    n_drop = int(drop * len(active) + 1e-9)
    kept = set(sorted(active, key=lambda i: (-abs(w[i]), i))[: len(active) - n_drop])
    grown = sorted((i for i in range(n * k) if i not in kept), key=lambda i: (-abs(g[i]), i))[:n_drop]
    expected = [i in kept or i in grown for i in range(n * k)]
    assert rigl_mask(weight, mask, grad, drop_fraction=drop).view(-1).tolist() == expected


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 5)])
@pytest.mark.parametrize("rows", [(), (0,), (1,), (2, 3)])
def test_forward_and_gradients_are_those_of_a_dense_layer(shape, rows):
    torch.manual_seed(0)
    n, k = shape
    weight, bias = torch.randn(n, k, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    mask = torch.rand(n, k) < 0.5
    layer = UnstructuredLinear.from_dense(weight, mask, bias)
    dense = nn.Linear(k, n).double()
    dense.weight.data, dense.bias.data = weight * mask, bias.clone()
    x = torch.randn(*rows, k, dtype=torch.float64)
    for module in (layer, dense):
        module(x).square().sum().backward()
    assert torch.equal(layer(x), dense(x))  # the same product of the same matrices
    assert torch.equal(layer.bias.grad, dense.bias.grad)
    positions = mask.view(-1).nonzero().squeeze(1)
    assert torch.equal(layer.weight.grad[: len(positions)], dense.weight.grad.view(-1)[positions])
    assert torch.equal(layer.to_dense(), weight * mask)
    assert torch.equal(layer.mask(), mask)


def test_rows_differ_and_budget_and_state_follow_the_topology():
    torch.manual_seed(0)
    model = sparsify(nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 8)), CONFIG)
    assert len(set(model[0].mask().sum(1).tolist())) > 1
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    srigl = SRigL(model, optimizer, total_steps=12)
    x, y = torch.randn(32, 20), torch.randn(32, 8)
    for _ in range(12):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        before = model[0].mask()
        moments = torch.zeros(24, 20)
        moments[before] = optimizer.state[model[0].weight].get("exp_avg", torch.zeros(120))
        expected = model[0].dense_grad.wanted
        optimizer.step()
        moments[before] = optimizer.state[model[0].weight]["exp_avg"]
        weight = model[0].to_dense()
        report = srigl.step()
        assert (report is not None) == expected
        if report is not None:
            after = model[0].mask()
            kept = before & after
            assert after.sum() == before.sum() == 120
            assert report.layers[0].grown == (after & ~before).sum() > 0
            assert torch.equal(model[0].to_dense(), weight * kept)
            assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], (moments * kept)[after])


def trainer(tmp_path, config=CONFIG, **arguments):
    args = training_args(tmp_path, learning_rate=5e-3, **{"max_steps": 12, **arguments})
    return SparseTrainer(model=tiny_bert(), args=args, train_dataset=Toy(), srigl_config=config)


def test_structure_and_growth_change_the_outcome(tmp_path):
    def mask(**options):
        run = trainer(tmp_path, SRigLConfig(**{**CONFIG.to_dict(), **options}))
        run.train()
        assert sparsity_report(run.model).target_sparsity == pytest.approx(0.75, abs=1e-6)
        return run.model.bert.encoder.layer[0].output.dense.mask()

    found = [mask(), mask(structure="constant_fan_in"), mask(grow="random"), mask(update_every=None)]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_saving_loading_resuming_and_densifying(tmp_path):
    whole = trainer(tmp_path, save_strategy="steps", save_steps=4)
    whole.train()
    resumed = trainer(tmp_path, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    whole.save_model(tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    kinds = {type(layer) for layer in condensed_layers(loaded).values()}
    assert kinds == {UnstructuredLinear}
    whole.model.eval()
    ids = Toy().ids[:4]
    expected = whole.model(input_ids=ids).logits
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    assert torch.equal(densify(loaded)(input_ids=ids).logits, expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda i: i.flip(0), "flat positions must"),
        (lambda i: i + 10**6, r"flat positions must be in \[0, 480\)"),
        (lambda i: i.to(torch.int16), "expected torch.int32, found torch.int16"),
        (lambda i: i[:-1], r"tensor indices: expected shape \(120,\)"),
    ],
)
def test_bad_files_are_refused(damage, message):
    model = sparsify(nn.Sequential(nn.Linear(20, 24)), CONFIG)
    state = model.state_dict()
    state["0.indices"] = damage(state["0.indices"])
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)


@pytest.mark.parametrize("options", [{"gamma_sal": 0.3}, {"ramp_until": 0.5}])
def test_ablation_and_ramp_are_not_for_it(options):
    with pytest.raises(ValueError, match="baseline without neuron ablation and without a ramp"):
        SRigLConfig(**{**CONFIG.to_dict(), **options})


def test_bf16_and_autocast():
    layer = UnstructuredLinear.from_dense(torch.randn(6, 5), torch.rand(6, 5) < 0.5, torch.zeros(6))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(3, 5))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.to(torch.bfloat16)(torch.randn(3, 5).bfloat16()).dtype == torch.bfloat16
