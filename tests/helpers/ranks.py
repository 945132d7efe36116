"""Real processes on gloo, for tests: forked from a server that has imported everything, so that a start costs little."""

import fcntl
import multiprocessing
import os
import pickle
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from hf_srigl.model.attachment import condensed_layers

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "accelerate", "hf_srigl", "transformers.models.bert"])


def start(worker, ranks, path, *args):
    """Start `ranks` processes that run ``worker(rank, path, *args)`` in one process group; returns the processes."""
    store = os.path.join(path, f"store-{os.urandom(4).hex()}")
    processes = [
        CONTEXT.Process(target=_rank, args=(worker, rank, ranks, store, str(path), args)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def run(worker, ranks, path, *args):
    """What ``worker(rank, path, *args)`` returned on each rank; an error or a wrong world size fails the test."""
    processes = start(worker, ranks, path, *args)
    codes = wait(processes)
    assert codes == [0] * ranks, codes
    outcomes = []
    for rank in range(ranks):
        with open(os.path.join(path, f"{worker.__name__}-{rank}.pickle"), "rb") as file:
            outcomes.append(pickle.load(file))
    assert [outcome[0] for outcome in outcomes] == [ranks] * ranks  # the world size each rank found itself in
    return [outcome[1] for outcome in outcomes]


def run_once(factory, worker, ranks):
    """`run`, once for all xdist workers of a test session."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = base / f"{worker.__module__}-{worker.__name__}-{ranks}"
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.mkdir()
            outcomes = run(worker, ranks, path)
            (path / "outcomes.pickle").write_bytes(pickle.dumps(outcomes))
    return pickle.loads((path / "outcomes.pickle").read_bytes())


def wait(processes, seconds=200):
    """Exit codes (-9: killed); a process that hangs is killed and fails the test."""
    for process in processes:
        process.join(seconds)
    hung = [process.is_alive() for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    assert not any(hung), f"processes hang: {hung}"
    return [process.exitcode for process in processes]


def _rank(worker, rank, ranks, store, path, args):
    os.environ["OMP_NUM_THREADS"] = "1"  # or accelerate sets as many threads as there are cores
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": 1}
    if ranks > 1:
        os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
        timeout = timedelta(seconds=120)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timeout)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    outcome = (dist.get_world_size() if ranks > 1 else 1, worker(rank, path, *args))
    with open(os.path.join(path, f"{worker.__name__}-{rank}.pickle"), "wb") as file:
        pickle.dump(outcome, file)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def topologies(model):
    return [tensor.clone() for layer in condensed_layers(model).values() for tensor in (layer.indices, layer.active)]


class Watch(TrainerCallback):
    """The topologies after every step of a Trainer."""

    def __init__(self):
        self.history = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        self.history[state.global_step] = topologies(model)
