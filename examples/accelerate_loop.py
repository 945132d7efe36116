"""Sparse training in a loop of your own, with accelerate: many processes, whole checkpoints, exact resuming.

    python examples/accelerate_loop.py
    torchrun --nproc_per_node 2 examples/accelerate_loop.py
    accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py

Stop it at any moment and start it again: it goes on from its last checkpoint and ends with the same numbers, with any
number of processes that divides the global batch.
"""

import argparse
import os

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset
from transformers.trainer_utils import get_last_checkpoint

from hf_srigl import SRigL, SRigLConfig, sparsify, sparsity_report
from hf_srigl.training.checkpoints import written_whole

GLOBAL_BATCH, ACCUMULATION, SAVE_EVERY = 64, 2, 20


def make_data(size: int = 1024) -> TensorDataset:
    """Points in 64 dimensions of which 8 matter; the label is that of a small random network."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 64, generator=generator)
    hidden = torch.tanh(x[:, :8] @ torch.randn(8, 16, generator=generator))
    return TensorDataset(x, (hidden @ torch.randn(16, 4, generator=generator)).argmax(1))


def main(output: str = "accelerate_loop", steps: int = 80, cpu: bool = False) -> float:
    """Train for `steps` optimizer steps; returns the accuracy over all the data."""
    cpu = (
        cpu or not torch.accelerator.is_available()
    )  # accelerate ignores torchrun on a machine without GPUs, unless told
    order = DataLoaderConfiguration(use_seedable_sampler=True)  # one order for an epoch, whatever ran before
    accelerator = Accelerator(cpu=cpu, gradient_accumulation_steps=ACCUMULATION, dataloader_config=order)
    set_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 4))
    model = sparsify(model, SRigLConfig(sparsity=0.9, update_every=5, init="random", exclude_modules=["4"]))
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(make_data(), batch_size=GLOBAL_BATCH // accelerator.num_processes, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    srigl = SRigL(model, optimizer, total_steps=steps)  # after prepare
    accelerator.register_for_checkpointing(srigl)  # its state travels with save_state and load_state

    checkpoint = get_last_checkpoint(output) if os.path.isdir(output) else None
    if checkpoint is not None:
        accelerator.load_state(checkpoint)
        accelerator.print(f"resuming from {checkpoint}")
    steps_per_epoch = len(loader) // ACCUMULATION
    while srigl.steps < steps:
        epoch, done = divmod(srigl.steps, steps_per_epoch)
        loader.set_epoch(epoch)
        for x, y in accelerator.skip_first_batches(loader, done * ACCUMULATION) if done else loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                report = srigl.step()  # right after the optimizer's, before gradients are zeroed
                optimizer.zero_grad()
            if report is not None:
                accelerator.print(f"loss {loss.item():.4f}, {report}")
            if not accelerator.sync_gradients:
                continue
            if srigl.steps % SAVE_EVERY == 0:
                with written_whole(os.path.join(output, f"checkpoint-{srigl.steps}")) as folder:
                    accelerator.save_state(folder)
            if srigl.steps == steps:
                break
    accelerator.print(sparsity_report(accelerator.unwrap_model(model)))
    x, y = (part.to(accelerator.device) for part in make_data().tensors)
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).float().mean())
    accelerator.print(f"{accelerator.num_processes} processes, {srigl.steps} steps, accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="accelerate_loop", help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of the whole run")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args()
    main(options.output, options.steps, options.cpu)
