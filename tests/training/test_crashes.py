"""Runs killed at any moment, ranks that die, full disks: the last complete checkpoint is there and nothing differs."""

import errno
import io
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import ranks as processes
import torch
import torch.distributed as dist
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from conftest import Toy, tiny_bert, training_args
from hf_srigl import CondensedLinear, SparseTrainer, SRigLConfig
from hf_srigl.training.callback import STATE_FILE
from hf_srigl.training.checkpoints import discard_older, written_whole

CONFIG = SRigLConfig(sparsity=0.75, update_every=3, gamma_sal=1.0, drop_fraction=0.5, stop_updates_at=1.0)
FILES = {"config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", STATE_FILE}


def build(path, **changes):
    """Dropout, accumulation, a checkpoint every second step: all that resuming has to restore."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    arguments = {
        "max_steps": 10, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "learning_rate": 5e-3,
        "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4 // world, "logging_strategy": "no",
        "ddp_find_unused_parameters": False,
    }  # fmt: skip
    args = training_args(path, **arguments | changes)
    return SparseTrainer(model=tiny_bert(num_hidden_layers=1), args=args, train_dataset=Toy(), srigl_config=CONFIG)


def folders(path):
    """Besides them there are pictures."""
    return sorted(p.name for p in path.iterdir() if p.is_dir())


def last_checkpoint(path):
    return get_last_checkpoint(path) if os.path.isdir(path) else None


def train(rank, path, folder, kill=None):
    """Go on from the last checkpoint in `folder`; `kill` is (rank, phase, count) or None. Returns the final state."""
    torch.use_deterministic_algorithms(True)
    folder = os.path.join(path, folder)
    trainer = build(folder)
    last = last_checkpoint(folder)
    if kill is not None and kill[0] == rank:
        die_at(trainer.model, *kill[1:])
    trainer.train(resume_from_checkpoint=last)
    return trainer.model.state_dict(), [row for row in trainer.state.log_history if "srigl/itop" in row]


def die_at(model, phase, count):
    """Arrange for SIGKILL at the `count`-th time that this process is in `phase`."""
    left = [count]

    def tick():
        left[0] -= 1
        if left[0] == 0:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner, name, act=tick):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            act(*args, **kwargs)
            return original(*args, **kwargs)

        setattr(owner, name, call)

    if phase == "forward":
        before(CondensedLinear, "forward", lambda *_: tick())
    elif phase == "backward":
        for parameter in model.parameters():
            parameter.register_hook(lambda grad: tick())
    elif phase == "update":  # between two layers, and between the tensors of one
        before(CondensedLinear, "rewire", lambda *_: tick())
    elif phase == "optimizer":
        before(torch.optim.AdamW, "step", lambda *_: tick())
    elif phase == "saving":  # at each file, half written; at each flush; before and after each renaming

        def half(thing, target, *args, **kwargs):
            if isinstance(target, io.BytesIO):
                return
            left[0] -= 1
            if left[0] == 0:
                whole = io.BytesIO()
                original_save(thing, whole)
                Path(target).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

        original_save = torch.save
        before(torch, "save", half)
        for name in ("fsync", "rename", "replace", "rmdir", "unlink"):
            before(os, name, lambda *_, **__: tick())
    else:
        raise ValueError(phase)


MOST = {"forward": 60, "backward": 150, "update": 15, "optimizer": 8, "saving": 60}  # events, of which a run has more


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted runs, by number of ranks."""
    return {n: processes.run_once(tmp_path_factory, uninterrupted, n) for n in (1, 2)}


def uninterrupted(rank, path):
    return train(rank, path, "whole")


def train_killed(rank, path, kill):
    return train(rank, path, "killed", kill)


def kill_and_resume(path, n, moments, expected):
    """Kill the run at each of the moments in turn, each time going on from what is there; then let it end."""
    for victim, phase, count in moments:
        codes = processes.wait(processes.start(train_killed, n, path, (victim, phase, count)))
        assert codes[victim] == -signal.SIGKILL, codes
        assert all(code != 0 for code in codes), f"ranks went on without rank {victim}: {codes}"
        for checkpoint in Path(path, "killed").glob("checkpoint-*"):
            rng = {"rng_state.pth"} if n == 1 else {f"rng_state_{rank}.pth" for rank in range(n)}
            assert {file.name for file in checkpoint.iterdir()} >= FILES | rng, checkpoint
    for (state, log), (expected_state, expected_log) in zip(
        processes.run(train_killed, n, path, None), expected, strict=True
    ):
        assert log == expected_log
        assert len(log) == 3
        for name, tensor in expected_state.items():
            assert torch.equal(state[name], tensor), name
    assert folders(Path(path, "killed")) == ["checkpoint-10", "checkpoint-8"]


# 20 and more events of each kind lie in a run; those of saving are the hardest, so there are two of them.
@pytest.mark.parametrize(
    ("n", "moments"),
    [
        (1, [(0, "forward", 31), (0, "saving", 3), (0, "update", 9), (0, "saving", 12), (0, "backward", 70)]),
        (2, [(1, "backward", 90), (0, "saving", 15), (1, "update", 8)]),
    ],
    ids=["one process", "two processes"],
)
def test_a_killed_run_resumes_and_ends_bit_identical(tmp_path, whole, n, moments):
    kill_and_resume(tmp_path, n, moments, whole[n])


@pytest.mark.soak
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("number", range(20))
def test_twenty_random_moments(tmp_path, whole, n, number):
    """`make soak`: one kill at a random moment of each run, from its beginning."""
    draw = random.Random(number)
    phase = list(MOST)[number % len(MOST)]
    victim = draw.randrange(n)
    most = (
        5 if phase == "saving" and victim > 0 else MOST[phase]
    )  # the others write one file at each of five checkpoints
    kill_and_resume(tmp_path, n, [(victim, phase, draw.randint(1, most))], whole[n])


class FullAt(TrainerCallback):
    def __init__(self, step, full):
        self.step, self.full = step, full

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.full.append(True)


@pytest.mark.parametrize("what", ["torch.save", "os.fsync", "os.rename"])
def test_a_full_disk_leaves_the_previous_checkpoint_usable(tmp_path, whole, monkeypatch, what):
    module, name = {"torch": torch, "os": os}[what.split(".")[0]], what.split(".")[1]
    original, full = getattr(module, name), []

    def write(*args, **kwargs):
        if full and (name != "rename" or "checkpoint-6" in str(args[1])):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    trainer = build(tmp_path)
    monkeypatch.setattr(module, name, write)
    trainer.add_callback(FullAt(5, full))
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    monkeypatch.undo()
    assert folders(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    resumed = build(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    for key, tensor in whole[1][0][0].items():
        assert torch.equal(resumed.model.state_dict()[key], tensor), key


def test_a_failed_write_touches_nothing_and_an_old_folder_is_replaced(tmp_path):
    path = tmp_path / "checkpoint-1"
    for content in ("old", "new"):
        with written_whole(path) as folder:
            Path(folder, content).write_text(content)
    assert [p.name for p in path.iterdir()] == ["new"]
    with pytest.raises(FileNotFoundError), written_whole(path) as folder:
        Path(folder, "half").write_text(Path(folder, "missing").read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    assert [p.name for p in path.iterdir()] == ["new"]
    (tmp_path / "_incomplete" / "checkpoint-2").mkdir(parents=True)  # what a killed run leaves
    assert get_last_checkpoint(tmp_path) == str(path)
    with written_whole(tmp_path / "checkpoint-3"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 4]), (0, None, [1, 2, 3, 4]), (5, None, [1, 2, 3, 4]), (2, None, [3, 4]),
        (2, 1, [1, 4]), (1, 2, [2, 4]), (1, 4, [4]), (3, 1, [1, 3, 4]),
    ],
)  # fmt: skip
def test_old_checkpoints_go_and_the_best_and_the_newest_stay(tmp_path, limit, best, left):
    for step in range(1, 5):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (1000 * step, 1000 * step))
    discard_older(str(tmp_path), limit, None if best is None else str(tmp_path / f"checkpoint-{best}"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]


def test_the_best_checkpoint_is_known_under_its_final_name(tmp_path):
    scores = iter([0.3, 0.9, 0.5, 0.2, 0.1])
    trainer = SparseTrainer(
        model=tiny_bert(num_hidden_layers=1),
        args=training_args(
            tmp_path, max_steps=10, save_strategy="steps", save_steps=2, save_total_limit=1, eval_strategy="steps",
            eval_steps=2, load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
        ),
        train_dataset=Toy(), eval_dataset=Toy(8), srigl_config=CONFIG,
        compute_metrics=lambda prediction: {"score": next(scores)},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert folders(tmp_path) == ["checkpoint-4"]
    assert str(tmp_path / "checkpoint-4") in (tmp_path / "checkpoint-4" / "trainer_state.json").read_text()
    best = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert all(torch.equal(best[name], tensor) for name, tensor in trainer.model.state_dict().items())


def test_uploads_see_the_checkpoint_under_its_final_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Trainer, "_push_from_checkpoint", lambda self, folder: seen.append((folder, os.listdir(folder)))
    )
    trainer = build(tmp_path, max_steps=4)
    trainer.args.push_to_hub = True
    trainer.train()
    assert [folder for folder, _ in seen] == [str(tmp_path / f"checkpoint-{step}") for step in (2, 4)]
    assert all(set(files) >= FILES for _, files in seen)
