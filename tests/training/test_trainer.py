"""The real Trainer on tiny models: every feature people use, and bit-identical resuming."""

import json
import math
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from rounding import assert_close_training, path_terms
from torch import nn, optim
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerControl,
    TrainerState,
)

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigLCallback, SRigLConfig, SRigLTrainerMixin, sparsify, sparsity_report
from hf_srigl.model.attachment import condensed_layers, config_of
from hf_srigl.training.callback import STATE_FILE, check_arguments, logger

CONFIG = SRigLConfig(sparsity=0.75, update_every=3, gamma_sal=1.0, drop_fraction=0.5)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(PrinterCallback, "on_log", lambda *args, **kwargs: None)


def make(tmp_path, *, config=CONFIG, model=None, cls=SparseTrainer, **arguments):
    arguments.setdefault("max_steps", 12)
    extra = {
        k: arguments.pop(k) for k in ("model_init", "callbacks", "compute_metrics", "optimizers") if k in arguments
    }
    model = None if "model_init" in extra else tiny_bert() if model is None else model
    return cls(
        model=model,
        args=training_args(tmp_path, **{"learning_rate": 5e-3} | arguments),
        train_dataset=Toy(),
        eval_dataset=Toy(16),
        srigl_config=config,
        **extra,
    )


def without_dropout():
    return tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def updates(trainer):
    return [row["step"] for row in trainer.state.log_history if "srigl/sparsity" in row]


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 3},
        {"max_grad_norm": 0.01},
        {"weight_decay": 0.3},
        {"optim": "adamw_torch"},
        {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.5},
        {"optim": "adafactor"},
        {"optim": "rmsprop"},
        {"optim": "adagrad"},
        {"bf16": True},
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"label_smoothing_factor": 0.1},
        {"lr_scheduler_type": "cosine"},
    ],
    ids=str,
)
def test_an_argument_of_the_trainer_works_and_takes_effect(tmp_path, arguments):
    plain = make(tmp_path / "a", model=without_dropout())
    changed = make(tmp_path / "b", model=without_dropout(), **arguments)
    for trainer in (plain, changed):
        trainer.train()
        assert updates(trainer) == [3, 6]
    first, second = plain.model.state_dict(), changed.model.state_dict()
    checkpointing = "activation_checkpointing" in arguments
    same = all(torch.equal(first[name], second[name]) for name in first)
    assert same == checkpointing  # recomputing activations must change nothing, everything else something
    assert all(torch.isfinite(p).all() for p in changed.model.parameters())


def test_the_default_optimizer_is_fused_and_its_state_is_condensed(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    assert trainer.args.optim == "adamw_torch_fused"
    for layer in condensed_layers(trainer.model).values():
        state = trainer.optimizer.state[layer.weight]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (layer.budget,)


def test_torch_compile_trains_like_eager(tmp_path):
    torch._dynamo.reset()
    eager = make(tmp_path / "a", model=without_dropout().double())
    compiled = make(
        tmp_path / "b", model=without_dropout().double(), torch_compile=True, torch_compile_backend="aot_eager"
    )
    for trainer in (eager, compiled):
        trainer.train()
    assert updates(compiled) == [3, 6]
    assert torch._dynamo.utils.counters["graph_break"] == {}
    for name, layer in condensed_layers(eager.model).items():
        found, terms = compiled.model.get_submodule(name).to_dense(), path_terms(eager.model)
        rate, steps = eager.args.learning_rate, eager.state.global_step
        assert_close_training(found, layer.to_dense(), steps=steps, rate=rate, terms=terms, spread=100, name=name)


def test_logs_show_the_topology_and_leave_the_trainers_own_entries_alone(tmp_path):
    trainer = make(tmp_path, logging_steps=3)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "srigl/sparsity" in row]
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        assert 0.7 < row["srigl/sparsity"] < 0.8
        assert row["srigl/grown"] > 0
        assert row["srigl/dropped"] > 0
        assert 0.25 < row["srigl/itop"] < 1
        assert 0 < row["srigl/active_neurons"] <= 1
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [3, 6, 9, 12]


def test_tensorboard_shows_the_topology(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "tb")
    try:
        make(tmp_path, report_to="tensorboard").train()
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    events = accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    tag = next(tag for tag in events.Tags()["scalars"] if tag.endswith("srigl/sparsity"))
    assert [event.step for event in events.Scalars(tag)] == [3, 6]


def test_a_stock_trainer_with_the_callback_gives_the_same_model(tmp_path):
    ours = make(tmp_path / "a")
    ours.train()
    stock = Trainer(
        model=sparsify(tiny_bert(), CONFIG),
        args=training_args(tmp_path / "b", learning_rate=5e-3, max_steps=12),
        train_dataset=Toy(),
        callbacks=[SRigLCallback()],
    )
    stock.train()
    assert updates(stock) == updates(ours) == [3, 6]
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(stock.model.state_dict()[name], tensor)


def test_the_mixin_works_with_another_trainer_and_without_pretrained_models(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(100, 16), nn.Linear(16, 32), nn.Linear(32, 2)

        def forward(self, input_ids, attention_mask=None, labels=None):
            logits = self.head(torch.relu(self.body(self.embed(input_ids).mean(1))))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Counting(Trainer):
        steps = 0

        def training_step(self, *args, **kwargs):
            self.steps += 1
            return super().training_step(*args, **kwargs)

    class SparseCounting(SRigLTrainerMixin, Counting):
        pass

    config = SRigLConfig(sparsity=0.75, update_every=3, exclude_modules=["head"])
    trainer = make(tmp_path, config=config, model=Plain(), cls=SparseCounting, save_strategy="steps", save_steps=6)
    trainer.train()
    assert trainer.steps == 12
    assert updates(trainer) == [3, 6]
    assert list(condensed_layers(trainer.model)) == ["body"]
    resumed = make(tmp_path, config=config, model=Plain(), cls=SparseCounting, save_strategy="steps", save_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


def test_model_init_is_sparsified_every_time(tmp_path):
    trainer = make(tmp_path, model_init=lambda: tiny_bert())
    assert condensed_layers(trainer.model)
    trainer.train()
    first = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    trainer.train()
    assert updates(trainer) == [3, 6]
    assert all(torch.equal(first[name], t) for name, t in trainer.model.state_dict().items())


def test_auto_find_batch_size_starts_over_cleanly(tmp_path, monkeypatch):
    class Tight(SparseTrainer):
        failures = 0

        def training_step(self, model, inputs, *args, **kwargs):
            loss = super().training_step(model, inputs, *args, **kwargs)
            if len(inputs["labels"]) > 4 and self.state.global_step == 2:  # in the step that collects
                type(self).failures += 1
                raise RuntimeError("CUDA out of memory.")
            return loss

    trainer = make(tmp_path, cls=Tight, auto_find_batch_size=True, per_device_train_batch_size=8)
    trainer.train()
    assert Tight.failures > 1
    assert updates(trainer) == [3, 6]


def test_load_best_model_at_end_rolls_the_topology_back(tmp_path):
    scores = iter([1.0, 0.5, 0.2, 0.1, 0.1, 0.1])  # the first evaluation is the best
    trainer = make(
        tmp_path,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        compute_metrics=lambda prediction: {"score": next(scores)},
        config=SRigLConfig(sparsity=0.75, update_every=1, gamma_sal=1.0, drop_fraction=0.5),
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8").state_dict()
    assert all(torch.equal(best[name], t) for name, t in trainer.model.state_dict().items())
    assert any(not torch.equal(best[name], last[name]) for name in best if name.endswith("indices"))


# Updates at 3, 6: checkpoints just before, at and after each of them, and after ablation changed a fan-in.
@pytest.mark.parametrize("step", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("stock", [False, True])
def test_resuming_is_bit_identical(tmp_path, step, stock):
    def build():
        arguments = {"save_strategy": "steps", "save_steps": step, "max_steps": 12}
        if not stock:
            return make(tmp_path, **arguments)
        args = training_args(tmp_path, learning_rate=5e-3, **arguments)
        return Trainer(sparsify(tiny_bert(), CONFIG), args, train_dataset=Toy(), callbacks=[SRigLCallback()])

    whole = build()
    whole.train()
    checkpoint = tmp_path / f"checkpoint-{step}"
    assert (checkpoint / STATE_FILE).is_file()
    if step >= 6:
        layer = whole.model.bert.encoder.layer[1].output.dense
        assert layer.fan_in > layer.initial_fan_in  # ablation took part
    resumed = build()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    topology = [row for row in whole.state.log_history if "srigl/itop" in row]
    assert [row for row in resumed.state.log_history if "srigl/itop" in row] == topology


@pytest.mark.parametrize("step", [3, 4, 5])
def test_resuming_is_bit_identical_with_uneven_accumulation_and_pruned_gradients(tmp_path, step):
    """Ten batches an epoch in steps of four, four and two; at 90 % and without ablation dense gradients are pruned."""

    def build():
        return SparseTrainer(
            model=tiny_bert(),
            args=training_args(
                tmp_path, max_steps=10, gradient_accumulation_steps=4, save_strategy="steps", save_steps=step,
                learning_rate=5e-3,
            ),
            train_dataset=Toy(40),
            srigl_config=SRigLConfig(sparsity=0.9, update_every=4, gamma_sal=None, stop_updates_at=1.0),
        )  # fmt: skip

    whole = build()
    whole.train()
    resumed = build()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert updates(whole) == updates(resumed) == [4, 8]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_resuming_without_the_state_file_says_what_is_lost(tmp_path, monkeypatch):
    trainer = make(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    os.remove(tmp_path / "checkpoint-4" / STATE_FILE)
    resumed = make(tmp_path, save_strategy="steps", save_steps=4)
    warnings = []
    monkeypatch.setattr(logger, "warning_once", warnings.append)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(warnings) == 1
    assert "Resuming at step 4 without its srigl_state.safetensors" in warnings[0]
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)  # weights and topology are all there


def test_checkpoints_load_through_auto_classes_and_train_on(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=6)
    trainer.train()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-12")
    assert config_of(model) == CONFIG
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    further = make(tmp_path / "on", model=model, config=None)
    further.train()
    assert updates(further) == [3, 6]
    with open(tmp_path / "checkpoint-12" / "config.json") as file:
        saved = json.load(file)["quantization_config"]
    assert saved["quant_method"] == "srigl"
    assert saved["layers"] == {n: layer.budget for n, layer in condensed_layers(model).items()}


def test_training_options_may_change_for_a_sparse_model_but_not_what_is_fixed(tmp_path):
    model = sparsify(tiny_bert(), CONFIG)
    trainer = make(tmp_path, model=model, config=SRigLConfig(sparsity=0.75, update_every=4, gamma_sal=None))
    trainer.train()
    assert updates(trainer) == [4, 8]
    assert config_of(trainer.model).update_every == 4
    with pytest.raises(ValueError, match=r"condensed already with sparsity=0\.75, srigl_config says 0\.5; densify"):
        make(tmp_path, model=model, config=SRigLConfig(sparsity=0.5))


def test_an_fp16_overflow_postpones_the_update(tmp_path):
    class Overflowing(SparseTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            loss = super().training_step(model, inputs, *args, **kwargs)
            if self.state.global_step == 2:  # step 3, an update step: what a scaled loss leaves after an overflow
                for layer in condensed_layers(self.model).values():
                    held = layer.dense_grad
                    (held.values if held.value is None else held.value).fill_(torch.inf)
                    layer.weight.grad.fill_(torch.inf)
                for p in self.model.parameters():
                    if p.grad is not None:
                        p.grad.zero_()  # the scaler skips such a step
            return loss

    trainer = make(tmp_path, cls=Overflowing)
    trainer.train()
    assert updates(trainer) == [4, 6]


def test_a_grad_scaler_in_a_bare_loop(tmp_path):
    from hf_srigl import SRigL

    model = sparsify(nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)), CONFIG)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    srigl = SRigL(model, optimizer, total_steps=40)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    steps, scales = [], []
    for step in range(1, 30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(torch.randn(8, 20)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if srigl.step() is not None:
            steps.append(step)
    assert scales[0] < 2.0**30  # overflows did happen, at the first update step too
    first_sound = next(i + 1 for i, (a, b) in enumerate(zip(scales, scales[1:], strict=False)) if a == b) + 1
    assert steps[0] >= first_sound > 3
    assert len(steps) >= 3
    assert all(math.isfinite(float(p.detach().sum())) for p in model.parameters())


@pytest.mark.parametrize(
    "optim_name",
    ["adamw_bnb_8bit", "adamw_torch_8bit", "adamw_torch_4bit", "lomo", "galore_adamw_layerwise", "apollo_adamw"],
)
def test_optimizers_whose_state_cannot_move_are_refused_at_the_start(tmp_path, optim_name):
    with pytest.raises(ValueError, match=rf"optim='{optim_name}' cannot train a condensed model: .*use AdamW"):
        make(tmp_path, optim=optim_name)
    args = training_args(tmp_path, optim=optim_name)
    with pytest.raises(ValueError, match="cannot train a condensed model"):
        Trainer(sparsify(tiny_bert(), CONFIG), args, train_dataset=Toy(), callbacks=[SRigLCallback()])


@pytest.mark.parametrize("plugin", ["DEEPSPEED", "FSDP"])
def test_plugins_of_accelerate_launch_are_refused(tmp_path, monkeypatch, plugin):
    args = SimpleNamespace(deepspeed=None, fsdp=None, n_gpu=0, optim="sgd")
    check_arguments(args)
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    with pytest.raises(ValueError, match="cannot train a condensed model"):
        check_arguments(args)


def test_a_damaged_state_file_says_which_and_what_to_do(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    path = tmp_path / "checkpoint-4" / STATE_FILE
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"checkpoint-4/srigl_state.safetensors is damaged .*; delete it to resume"):
        make(tmp_path, save_strategy="steps", save_steps=4).train(resume_from_checkpoint=str(path.parent))


def test_a_state_file_of_another_step_is_not_used(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    shutil.copy(tmp_path / "checkpoint-8" / STATE_FILE, tmp_path / "checkpoint-4" / STATE_FILE)
    resumed = make(tmp_path, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    itop = [[row["srigl/itop"] for row in t.state.log_history if "srigl/itop" in row] for t in (trainer, resumed)]
    assert itop[1][0] == itop[0][0]  # from the checkpoint's own log
    assert 0 < itop[1][1] < itop[0][1]  # counted anew, not from the later file


def test_other_refusals_at_the_start(tmp_path):
    sound = {"deepspeed": None, "fsdp": None, "n_gpu": 0, "optim": "sgd"}
    check_arguments(SimpleNamespace(**sound))
    for change, says in (
        ({"deepspeed": "ds.json"}, "DeepSpeed cannot train a condensed model.*torchrun"),
        ({"fsdp": [True]}, "FSDP cannot train a condensed model yet.*torchrun"),
        ({"n_gpu": 2}, "expected one GPU for each process, found 2"),
    ):
        with pytest.raises(ValueError, match=says):
            check_arguments(SimpleNamespace(**sound | change))
    with pytest.raises(ValueError, match="dense and there is no srigl_config"):
        make(tmp_path, config=None)
    with pytest.raises(TypeError, match="srigl_config must be an SRigLConfig, got dict"):
        make(tmp_path, config={"sparsity": 0.5})
    with pytest.raises(ValueError, match="adds SRigLCallback by itself"):
        make(tmp_path, callbacks=[SRigLCallback()])
    model = tiny_bert()
    with pytest.raises(ValueError, match="optimizer passed in holds the parameters of the dense model"):
        make(tmp_path, model=model, optimizers=(optim.SGD(model.parameters(), lr=0.1), None))
    with pytest.raises(ValueError, match="no condensed layer"):
        Trainer(tiny_bert(), training_args(tmp_path), train_dataset=Toy(), callbacks=[SRigLCallback()]).train()


def test_an_optimizer_of_ones_own(tmp_path):
    model = sparsify(tiny_bert(), CONFIG)
    trainer = make(
        tmp_path, model=model, config=None, optimizers=(optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None)
    )
    trainer.train()
    assert updates(trainer) == [3, 6]


def test_save_only_model_leaves_no_state_file(tmp_path):
    make(tmp_path, save_strategy="steps", save_steps=6, save_only_model=True).train()
    assert not (tmp_path / "checkpoint-6" / STATE_FILE).exists()


def test_sparsity_of_the_trained_model_is_reported(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    report = sparsity_report(trainer.model)
    assert report.target_sparsity == pytest.approx(
        [row for row in trainer.state.log_history if "srigl/sparsity" in row][-1]["srigl/sparsity"]
    )


def test_the_callback_alone_ignores_events_outside_training(tmp_path):
    callback = SRigLCallback()
    args = training_args(tmp_path)
    callback.on_optimizer_step(args, TrainerState(), TrainerControl())
    callback.on_step_end(args, TrainerState(), TrainerControl())
    callback.on_train_end(args, TrainerState(), TrainerControl())
    assert callback.reports == []
