"""The example and its launchers, other numbers of ranks than before, device_map, and every way that is refused."""

import dataclasses
import os
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranks as processes
import torch
from accelerate import notebook_launcher
from ranks import Watch
from rounding import assert_close_training, path_terms
from test_crashes import CONFIG
from torch import nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForSequenceClassification

import hf_srigl
from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigL, sparsify

ROOT = Path(hf_srigl.__file__).parent.parent
EXAMPLE = str(ROOT / "examples" / "accelerate_loop.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}


def example(rank, path, folder="run", steps=48):
    return runpy.run_path(EXAMPLE)["main"](os.path.join(path, folder), steps, True)


def test_the_example_resumes_exactly_and_on_another_number_of_processes(tmp_path):
    (accuracy,) = processes.run(example, 1, tmp_path)
    assert accuracy > 0.6
    shutil.copytree(tmp_path / "run" / "checkpoint-20", tmp_path / "again" / "checkpoint-20")  # the middle of an epoch
    (tmp_path / "again" / "_incomplete" / "checkpoint-40").mkdir(parents=True)
    assert processes.run(example, 1, tmp_path, "again") == [accuracy]
    shutil.rmtree(tmp_path / "again" / "checkpoint-40")
    two = processes.run(example, 2, tmp_path, "again")  # random states of the other rank are missing, and not needed
    assert two == pytest.approx([accuracy] * 2, abs=0.005)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(tmp_path, *command):
    arguments = [EXAMPLE, "--output", str(tmp_path / "out"), "--steps", "24"]
    run = subprocess.run(
        [sys.executable, "-m", *command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "2 processes, 24 steps" in run.stdout
    assert (tmp_path / "out" / "checkpoint-20" / "random_states_1.pkl").is_file()


def test_torchrun(tmp_path):
    launch(tmp_path, "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.soak
def test_accelerate_launch(tmp_path):
    launch(
        tmp_path,
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        str(free_port()),
    )


def from_a_notebook(rank, path):
    def cell():
        example(0, path, "notebook", 24)

    notebook_launcher(cell, num_processes=2, use_port=str(free_port()))
    return sorted(os.listdir(os.path.join(path, "notebook", "checkpoint-20")))


def test_notebook_launcher(tmp_path):
    (files,) = processes.run(from_a_notebook, 1, tmp_path)
    assert [file for file in files if file.startswith("random_states")] == [
        "random_states_0.pkl",
        "random_states_1.pkl",
    ]


TERMS = path_terms(tiny_bert(num_hidden_layers=1))


def elastic(rank, path, folder, world, resume):
    args = training_args(
        os.path.join(path, folder), max_steps=16, optim="sgd", learning_rate=0.1, save_strategy="steps", save_steps=8,
        per_device_train_batch_size=8 // world, ddp_find_unused_parameters=False, logging_strategy="no",
        seed=3, ignore_data_skip=False,
    )  # fmt: skip
    net = tiny_bert(num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    net.double().accepts_loss_kwargs = False
    watch = Watch()
    trainer = SparseTrainer(
        model=net, args=args, train_dataset=Toy(), callbacks=[watch],
        srigl_config=dataclasses.replace(CONFIG, update_every=2),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=os.path.join(path, "two", "checkpoint-8") if resume else None)
    assert trainer.accelerator.num_processes == world
    return watch.history, trainer.model.state_dict()


def test_a_checkpoint_of_two_ranks_resumes_on_one_and_on_four(tmp_path):
    history, state = processes.run(elastic, 2, tmp_path, "two", 2, False)[0]
    later = {step: topology for step, topology in history.items() if step > 8}
    assert sorted(later) == list(range(9, 17))
    assert any(not torch.equal(a, b) for a, b in zip(history[8], history[16], strict=True))
    for world in (1, 4):
        for other, other_state in processes.run(elastic, world, tmp_path, f"on {world}", world, True):
            assert sorted(other) == sorted(later)
            for step, topology in later.items():
                assert all(torch.equal(a, b) for a, b in zip(other[step], topology, strict=True)), (world, step)
            for name, tensor in state.items():
                # gradients are clipped to 1
                assert_close_training(other_state[name], tensor, steps=16, rate=0.1, terms=TERMS, name=name)


PARTS = ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler", "classifier"]


@pytest.mark.parametrize(
    "device_map", ["auto", dict(zip(PARTS, ["cpu", "cpu", "disk", "disk", "cpu"], strict=True))], ids=str
)
def test_a_condensed_model_loads_under_a_device_map(tmp_path, device_map):
    model = sparsify(tiny_bert(), CONFIG).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    if device_map != "auto":
        assert loaded.hf_device_map == device_map
        assert loaded.bert.pooler.dense.weight.is_meta  # it is on the disk until it is used
    ids = torch.arange(16).view(2, 8)
    with torch.no_grad():
        assert torch.equal(loaded(ids.to(loaded.device)).logits.cpu(), model(ids).logits)


def test_processes_that_are_not_connected_are_refused(monkeypatch):
    model = sparsify(nn.Sequential(nn.Linear(8, 8)), CONFIG)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"one of 2 processes \(WORLD_SIZE\), but .* is not initialised.*cpu=True"):
        SRigL(model, optimizer, total_steps=5)
    monkeypatch.setenv("WORLD_SIZE", "1")
    SRigL(model, optimizer, total_steps=5).close()


@pytest.mark.parametrize("plugin", ["DEEPSPEED", "FSDP"])
def test_plugins_of_accelerate_launch_are_refused_in_bare_loops(monkeypatch, plugin):
    model = sparsify(nn.Sequential(nn.Linear(8, 8)), CONFIG)
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    with pytest.raises(ValueError, match=f"launched with {plugin}.*--multi_gpu trains with DDP"):
        SRigL(model, optim.SGD(model.parameters(), lr=0.1), total_steps=5)


class DeepSpeedEngine(nn.Module):  # DeepSpeed itself needs a compiler and a GPU: the class is known by its name
    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrapper", [nn.DataParallel, DeepSpeedEngine])
def test_wrappers_are_refused(wrapper):
    model = sparsify(nn.Sequential(nn.Linear(8, 8)), CONFIG)
    with pytest.raises(
        ValueError, match=f"{wrapper.__name__} cannot train a condensed model: .*DistributedDataParallel"
    ):
        SRigL(wrapper(model), optim.SGD(model.parameters(), lr=0.1), total_steps=5)


def by_hand(model, mesh):
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Shard(0)]))
    return model


def sharded(rank, path):
    said = {}
    for name, wrap in {
        "FSDP1": lambda model: FullyShardedDataParallel(model, use_orig_params=False, device_id=torch.device("cpu")),
        "FSDP1 with use_orig_params": lambda model: FullyShardedDataParallel(
            model, use_orig_params=True, device_id=torch.device("cpu")
        ),
        "shards by hand": lambda model: by_hand(model, init_device_mesh("cpu", (2,))),
    }.items():
        wrapped = wrap(sparsify(nn.Sequential(nn.Linear(8, 8)), CONFIG))
        try:
            SRigL(wrapped, optim.SGD(wrapped.parameters(), lr=0.1), total_steps=5)
        except ValueError as error:
            said[name] = str(error)
    return said


def test_sharded_parameters_are_refused_with_the_alternative(tmp_path):
    for said in processes.run(sharded, 2, tmp_path):
        flattened = "FullyShardedDataParallel cannot train a condensed model: it flattens"
        assert said["FSDP1"].startswith(flattened)
        assert said["FSDP1 with use_orig_params"].startswith(flattened)
        assert said["shards by hand"].startswith(
            "layer 0: its weight is sharded over 2 of 2 ranks by something other than"
        )
        assert all("Distributed" in message or "DDP" in message for message in said.values())
