"""What is said before a training and during it: the plan, warnings, the keys of the log."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer

import hf_srigl
from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigLConfig, SRigLTrainerMixin, sparsify
from hf_srigl.rule.schedule import is_update_step, update_steps
from hf_srigl.rule.updates import UpdateReport
from hf_srigl.training import callback

CONFIG = SRigLConfig(sparsity=0.75, update_every=2, stop_updates_at=1.0, gamma_sal=None)


def trainer(folder, config=CONFIG, **overrides):
    return SparseTrainer(tiny_bert(), training_args(folder, **overrides), train_dataset=Toy(), srigl_config=config)


@pytest.mark.parametrize("interval", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("stop", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("offsets", [(0,), (0, 2, 2), (1, 5)])
@pytest.mark.parametrize("end", [None, 1, 11])
def test_update_steps_are_those_at_which_some_layer_updates(interval, stop, offsets, end):
    kind = {"interval": interval, "stop_updates_at": stop, "total_steps": 29}
    slowly = [t for t in range(1, 30) if t == end or any(is_update_step(t, offset=o, **kind) for o in offsets)]
    assert update_steps(offsets=offsets, end=end, **kind) == slowly


@pytest.mark.parametrize("ramp", [None, 0.5])
def test_the_plan_is_what_happens(tmp_path, monkeypatch, ramp):
    said = []
    monkeypatch.setattr(callback.logger, "info", said.append)
    config = SRigLConfig(sparsity=0.75, update_every=2, stop_updates_at=1.0, gamma_sal=None, ramp_until=ramp)
    run = trainer(tmp_path, config, max_steps=9)
    before = sum(p.numel() for p in run.model.parameters())
    run.train()
    (line,) = [text for text in said if text.startswith("SRigL(")]
    start = "0.0% sparse, on a ramp to 75.0% at step 5" if ramp else "75.0% sparse"
    assert line.startswith(f"SRigL(13 condensed layers, {start}; ")
    steps = [report.step for report in run.topology_reports]
    assert f"{len(steps)} topology updates in 9 steps" in line
    assert steps == ([2, 4, 5, 6, 8] if ramp else [2, 4, 6, 8])
    assert ("after 2, 4, ..., 8" if ramp else "after 2, 4, 6 and 8") in line
    assert f"{before:,} parameters" in line
    assert f"{tiny_bert().num_parameters():,} if dense" in line


def test_a_run_that_has_ended_takes_no_further_step(tmp_path):
    """In mid-epoch, where the Trainer's own takes one more at each resume: findings/ has the script."""
    once = trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    once.train()
    again = trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 4
    for name, tensor in once.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    longer = trainer(tmp_path, max_steps=6, save_strategy="no")
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert longer.state.global_step == 6


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        (SRigLConfig(sparsity=0.8), True),
        (SRigLConfig(sparsity=0.79), False),
        (SRigLConfig.for_finetuning(sparsity=0.9), False),
    ],
)
def test_a_pretrained_model_cut_down_at_once_warns(tmp_path, monkeypatch, config, warns):
    said = []
    monkeypatch.setattr("hf_srigl.model.surgery.logger.warning_once", said.append)
    sparsify(tiny_bert(), config)
    assert said == [], "not pretrained"
    tiny_bert().save_pretrained(tmp_path)
    sparsify(AutoModelForSequenceClassification.from_pretrained(tmp_path), config)
    AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=config)  # while loading likewise
    assert len(said) == 2 * warns
    assert all("SRigLConfig.for_finetuning" in text and str(tmp_path) in text for text in said)


def test_the_page_of_the_log_defines_every_key():
    page = (Path(hf_srigl.__file__).parents[1] / "docs" / "training_log.md").read_text()
    report = UpdateReport(1, 0.3, (), sparsity=0.9, active_neurons=0.5, itop=0.2, reduced_bytes=8)
    assert set(re.findall(r"^\| `(srigl/\w+)`", page, flags=re.MULTILINE)) == set(report.metrics())


def test_the_log_leaves_out_what_says_nothing(tmp_path):
    config = SRigLConfig(sparsity=0.75, update_every=2, stop_updates_at=1.0, gamma_sal=None, ramp_until=0.5)
    ramp, plain = trainer(tmp_path / "a", config, max_steps=5), trainer(tmp_path / "b", max_steps=5)
    for run in (ramp, plain):
        run.train()
    keys = [{key for row in run.state.log_history for key in row if key.startswith("srigl/")} for run in (ramp, plain)]
    assert keys[1] - keys[0] == {"srigl/itop"}  # on the ramp all positions were active at first
    assert "srigl/reduced_bytes" not in keys[1]


def test_a_trainer_whose_loading_takes_one_argument_resumes(tmp_path):
    """As sentence-transformers' does."""

    class OneArgument(Trainer):
        def _load_from_checkpoint(self, checkpoint_path):
            self.asked_for = checkpoint_path
            super()._load_from_checkpoint(checkpoint_path)

    class Sparse(SRigLTrainerMixin, OneArgument): ...

    def make(steps):
        args = training_args(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2)
        return Sparse(tiny_bert(), args, train_dataset=Toy(), srigl_config=CONFIG)

    make(3).train()
    again = make(5)
    again.train(resume_from_checkpoint=True)
    assert again.asked_for == str(tmp_path / "checkpoint-3")
    assert [report.step for report in again.topology_reports] == [2, 4]


def test_averaging_model_and_reference_is_refused(tmp_path):
    args = training_args(tmp_path)
    args.sync_ref_model = True
    with pytest.raises(ValueError, match="sync_ref_model averages"):
        SparseTrainer(tiny_bert(), args, train_dataset=Toy(), srigl_config=CONFIG)
