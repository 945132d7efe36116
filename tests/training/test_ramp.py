"""The sparsity ramp: against the masked-dense simulation, in the Trainer, in files, and where it must refuse."""

import copy
import dataclasses

import pytest
import torch
from rounding import assert_close_training, path_terms
from simulation import MaskedDense, dense_twin, trim
from test_srigl import OPTIMIZERS, batches, mlp, train
from torch import nn, optim
from transformers import AutoModelForSequenceClassification, Trainer

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigL, SRigLCallback, SRigLConfig, densify, sparsify, sparsity_report
from hf_srigl.model.attachment import condensed_layers, is_on_ramp
from hf_srigl.model.ramp import Ramp
from hf_srigl.rule import topology
from hf_srigl.training.callback import logger

CONFIG = SRigLConfig(
    sparsity=0.8, ramp_until=0.6, update_every=4, drop_fraction=0.5, stop_updates_at=0.8, gamma_sal=None
)


def fan_ins(model):
    return [layer.fan_in for layer in condensed_layers(model).values()]


def test_by_hand():
    """100 inputs, 90 % at step 20 of 40: 10 + 90 (1 - t/20)^3."""
    layers = condensed_layers(sparsify(nn.Sequential(nn.Linear(100, 7)), SRigLConfig(sparsity=0.9, ramp_until=0.5)))
    ramp = Ramp(layers, SRigLConfig(sparsity=0.9, ramp_until=0.5), total_steps=40)
    assert [ramp.budget("0", step) // 7 for step in (0, 5, 10, 15, 19, 20, 39)] == [100, 48, 21, 11, 10, 10, 10]
    half = Ramp(layers, SRigLConfig(sparsity=0.9, ramp_until=0.5, ramp_from=0.5), total_steps=40)
    assert [half.budget("0", step) // 7 for step in (0, 10, 20)] == [50, 15, 10]
    flat = Ramp(layers, SRigLConfig(sparsity=0.9), total_steps=40)
    assert flat.budget("0", 39) == 700  # what the layer has


@pytest.mark.parametrize("fan_in", [0, 1, 4, 9, 20])
def test_trimming_is_the_slow_one(fan_in):
    g = torch.Generator().manual_seed(fan_in)
    weight = torch.randint(-3, 4, (13, 9), generator=g).float()  # many ties
    mask = torch.rand(13, 9, generator=g) < 0.6
    mask[4] = False
    assert torch.equal(topology.trim_mask(weight, mask, fan_in), trim(weight, mask, fan_in))


@pytest.mark.parametrize("optimizer_name", ["adamw", "amsgrad", "sgd"])
@pytest.mark.parametrize("gamma", [None, 0.85])
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_training_equals_the_masked_dense_simulation(optimizer_name, gamma, start):
    steps, config = 40, dataclasses.replace(CONFIG, gamma_sal=gamma, ramp_from=start, exclude_modules=["4"])
    model = sparsify(mlp(), config)
    assert fan_ins(model) == ([20, 24] if start == 0 else [12, 14])
    simulated = copy.deepcopy(model)
    rows = {}
    for name, layer in condensed_layers(simulated).items():
        twin, mask = dense_twin(layer)
        simulated.set_submodule(name, twin)
        rows[name] = (twin, mask, True)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    optimizer_simulated = OPTIMIZERS[optimizer_name](simulated.parameters())
    simulation = MaskedDense(
        rows, optimizer_simulated, total_steps=steps, interval=4, alpha=0.5, stop=0.8, gamma_sal=gamma,
        ramp=({"0": 4, "2": 5}, 24),
    )  # fmt: skip
    srigl, reports = SRigL(model, optimizer, total_steps=steps), []
    data = batches(steps)
    train(model, optimizer, srigl, data, clip=5.0, after=reports.append)
    train(simulated, optimizer_simulated, simulation, data, clip=5.0, before=simulation.before_optimizer)
    for name, layer in condensed_layers(model).items():
        assert torch.equal(layer.mask(), simulation.masks[name])
        expected = dict(simulated.named_modules())[name].weight
        rate = 0.1 * 5 / (1 - 0.9) if optimizer_name == "sgd" else 0.03  # gradients are clipped to 5
        spread = 1 if optimizer_name == "sgd" else 100
        assert_close_training(
            layer.to_dense(), expected, steps=steps, rate=rate, terms=path_terms(model), spread=spread, name=name
        )
    grown = [report.grown for report in reports if report is not None]
    assert len(grown) == 7
    assert sum(grown) > 20
    if gamma is not None:
        assert any(row.active < row.neurons for report in reports if report for row in report.layers)


def test_every_tensor_shrinks_with_the_fan_in():
    model = sparsify(mlp(), dataclasses.replace(CONFIG, exclude_modules=["4"]))
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    srigl, seen = SRigL(model, optimizer, total_steps=40), []

    def check(report):
        for layer in condensed_layers(model).values():
            tensors = [layer.weight, layer.weight.grad, layer.indices, *optimizer.state[layer.weight].values()]
            assert {t.numel() for t in tensors if t.ndim} == {layer.budget}
            assert layer.weight.untyped_storage().nbytes() == layer.budget * 8
        if report is not None:
            seen.append((report.step, *fan_ins(model)))

    train(model, optimizer, srigl, batches(40), after=check)
    assert [row[0] for row in seen] == [4, 8, 12, 16, 20, 24, 28]
    assert [row[1] for row in seen] == [13, 9, 6, 5, 4, 4, 4]
    assert not is_on_ramp(model)


def test_a_loss_that_is_still_held_does_not_pin_the_old_size():
    """Autograd's gradient accumulator lives as long as any graph that uses it."""
    model = sparsify(mlp(), CONFIG)
    optimizer = optim.SGD(model.parameters(), lr=1e-2)
    srigl, held = SRigL(model, optimizer, total_steps=12), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(torch.randn(6, 20, dtype=torch.float64)).square().mean()
        loss.backward()
        held.append(loss)
        optimizer.step()
        srigl.step()
    assert fan_ins(model) == [4, 5, 3]


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_frozen_and_unused_layers_are_trimmed_too(grow):
    """Nothing grows in them: what stays is their largest weights."""
    model = mlp()
    model.append(nn.Linear(5, 30).double())  # never called
    before = copy.deepcopy(model)
    model[0].weight.requires_grad_(False)
    sparsify(model, dataclasses.replace(CONFIG, grow=grow, exclude_modules=["2", "4"]))
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    srigl = SRigL(model, optimizer, total_steps=40)
    forward = model[:5]
    for _ in range(40):
        optimizer.zero_grad()
        forward(torch.randn(6, 20, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        srigl.step()
    assert fan_ins(model) == [4, 1]
    assert torch.equal(model[0].mask(), topology.magnitude_mask(before[0].weight, 4))
    if grow == "gradient":
        assert torch.equal(model[5].mask(), topology.magnitude_mask(before[5].weight, 1))


def test_options_change_the_outcome():
    def final(**options):
        model = sparsify(mlp(), dataclasses.replace(CONFIG, **options))
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        history = []
        train(
            model, optimizer, SRigL(model, optimizer, total_steps=40), batches(40),
            after=lambda report: history.append(tuple(fan_ins(model))),
        )  # fmt: skip
        assert history[-1] == (4, 5, 3)
        return history, model[0].mask()

    history, mask = final()
    shorter, other = final(ramp_until=0.3)
    assert shorter[11] == (4, 5, 3) != history[11]
    assert not torch.equal(mask, other)
    later, _ = final(ramp_from=0.5)
    assert later[0] == (10, 12, 8)
    none, _ = final(ramp_until=None)
    assert set(none) == {(4, 5, 3)}
    _, trimmed_only = final(drop_fraction=0.0)
    assert not torch.equal(mask, trimmed_only)


def test_the_ramp_ends_also_between_updates_and_when_an_update_is_postponed():
    model = sparsify(mlp(), dataclasses.replace(CONFIG, ramp_until=0.5, update_every=7))
    optimizer = optim.SGD(model.parameters(), lr=1e-3)
    srigl, seen = SRigL(model, optimizer, total_steps=40), []
    for step in range(1, 25):
        optimizer.zero_grad()
        x = torch.randn(6, 20, dtype=torch.float64)
        model(x).square().mean().backward()
        if step == 20:  # the last step of the ramp overflows
            model[0].dense_grad.value.fill_(torch.inf)
        optimizer.step()
        report = srigl.step()
        if report is not None:
            seen.append((step, *fan_ins(model)))
    assert seen == [(7, 8, 10, 7), (14, 4, 6, 3), (21, 4, 5, 3)]


def make(tmp_path, stock=False, config=None, model=None, **arguments):
    config = SRigLConfig(sparsity=0.8, ramp_until=0.5, update_every=3, gamma_sal=0.3) if config is None else config
    args = training_args(tmp_path, **{"learning_rate": 5e-3, "max_steps": 12, "save_strategy": "steps", **arguments})
    data = {"train_dataset": Toy(), "eval_dataset": Toy(8)}
    if stock:
        return Trainer(sparsify(tiny_bert(), config), args, callbacks=[SRigLCallback()], **data)
    return SparseTrainer(model=tiny_bert() if model is None else model, args=args, srigl_config=config, **data)


@pytest.mark.parametrize("step", [2, 3, 4, 6, 7])
@pytest.mark.parametrize("stock", [False, True])
def test_resuming_is_bit_identical_everywhere_on_the_ramp(tmp_path, step, stock):
    whole = make(tmp_path, stock, save_steps=step)
    whole.train()
    resumed = make(tmp_path, stock, save_steps=step)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert set(fan_ins(whole.model)) == {6, 13}
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_checkpoints_on_the_way_are_as_small_as_the_model_and_load(tmp_path):
    trainer = make(tmp_path, save_steps=3, max_steps=12)
    trainer.train()
    sizes = []
    for step in (3, 6, 9):
        folder = tmp_path / f"checkpoint-{step}"
        sizes.append((folder / "model.safetensors").stat().st_size)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert is_on_ramp(model) == (step < 6)
        assert sparsity_report(model).target_sparsity == pytest.approx(0.70 if step == 3 else 0.80, abs=0.02)
    assert sizes[0] > sizes[1] == sizes[2]


def test_a_model_that_has_left_its_ramp_can_be_trained_again_and_densified(tmp_path):
    trainer = make(tmp_path, save_strategy="no")
    trainer.train()
    again = SparseTrainer(model=trainer.model, args=training_args(tmp_path, max_steps=6), train_dataset=Toy())
    again.train()
    assert set(fan_ins(again.model)) == {6, 13}
    densify(again.model)


def test_the_best_model_is_one_at_the_final_sparsity(tmp_path):
    trainer = make(
        tmp_path, save_steps=3, eval_strategy="steps", eval_steps=3, load_best_model_at_end=True,
        metric_for_best_model="loss", learning_rate=0.5,
    )  # fmt: skip
    trainer.train()  # at this rate the loss only gets worse, and the earliest model would be the best
    assert trainer.state.best_global_step >= 6
    assert not is_on_ramp(trainer.model)
    assert set(fan_ins(trainer.model)) == {6, 13}
    stock = make(tmp_path, stock=True, save_steps=3, eval_strategy="steps", eval_steps=3, load_best_model_at_end=True)
    with pytest.raises(ValueError, match="load_best_model_at_end would pick a checkpoint from the ramp"):
        stock.train()


def test_training_that_ends_on_the_ramp_says_so(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(logger, "warning", warnings.append)
    trainer = make(tmp_path, save_strategy="no")
    trainer.add_callback(StopAt4())
    trainer.train()
    assert len(warnings) == 1
    assert "Training ended at step 4, before the ramp" in warnings[0]


class StopAt4(SRigLCallback.__mro__[1]):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def test_a_file_further_up_the_ramp_does_not_fit(tmp_path):
    trainer = make(tmp_path, save_steps=3)
    trainer.train()
    start = sparsify(tiny_bert(), trainer._srigl_config)
    with pytest.raises(RuntimeError, match=r"tensor weight: expected shape \(192,\), found \(1024,\)"):
        trainer.model.load_state_dict(start.state_dict())


def test_torch_compile_on_a_ramp(tmp_path):
    """With every new size the graph is made anew; nothing else may happen."""
    torch._dynamo.reset()
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    arguments = {"save_strategy": "no", "max_steps": 8}
    eager = make(tmp_path, model=copy.deepcopy(model), **arguments)
    compiled = make(tmp_path, model=model, torch_compile=True, torch_compile_backend="aot_eager", **arguments)
    for trainer in (eager, compiled):
        trainer.train()
    for name, tensor in eager.model.state_dict().items():
        rate, terms = eager.args.learning_rate, path_terms(eager.model)
        assert_close_training(
            compiled.model.state_dict()[name], tensor, steps=8, rate=rate, terms=terms, spread=100, name=name
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ramp_until": 0.0}, r"ramp_until must be a number in \(0, 1\], or None, got 0.0"),
        ({"ramp_until": 0.9}, "expected ramp_until <= stop_updates_at = 0.75, got 0.9"),
        ({"ramp_until": 0.5, "update_every": None}, "ramp_until needs topology updates"),
        ({"ramp_until": 0.5, "ramp_from": 0.9}, "ramp_from must be below the sparsity to reach, 0.9, got 0.9"),
        ({"ramp_from": 0.5}, "ramp_from=0.5 starts a ramp that has no end"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SRigLConfig(**options)
