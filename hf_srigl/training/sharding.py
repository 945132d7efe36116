"""What several processes have to agree on: the same dense gradients, the same decision, the same topology.

Supported: one process, and data parallelism with parameters whole on every rank (DDP) or sharded by FSDP2. Without an
initialised process group of more than one rank every function here does nothing.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hf_srigl.config import SRigLConfig
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.processes import rank, world_size

# Wrapper class -> why it cannot train a condensed model
_REFUSED_WRAPPERS = {
    "DataParallel": "its replicas collect dense gradients in each other's way",
    "FullyShardedDataParallel": "it flattens parameters into one; FSDP2 (torch.distributed.fsdp.fully_shard) works",
    "DeepSpeedEngine": "it runs the optimizer inside backward and hides gradients",
}


def check_launch(model: nn.Module) -> None:
    """Refuse wrappers and launches that would train wrongly, or not together.

    Args:
        model: as given by the user, with its wrappers.

    Raises:
        ValueError: nn.DataParallel, FSDP1 or DeepSpeed wraps the model, `accelerate launch` was told to use FSDP or
            DeepSpeed, or a launcher started several processes and `torch.distributed` is not initialised: each would train,
            and save, a model of its own. accelerate does that on machines without GPUs.
    """
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls.__name__ in _REFUSED_WRAPPERS:
                raise ValueError(
                    f"{cls.__name__} cannot train a condensed model: {_REFUSED_WRAPPERS[cls.__name__]}; wrap it in "
                    "DistributedDataParallel, with one process for each GPU (torchrun or accelerate launch)"
                )
    for plugin in ("DEEPSPEED", "FSDP"):
        if launched_with(plugin):
            raise ValueError(
                f"accelerate was launched with {plugin}, which cannot train a condensed model; leave it out: accelerate "
                "launch --multi_gpu trains with DDP, and a condensed model needs a fraction of the memory anyhow"
            )
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched.isdigit() and int(launched) > 1 and not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"launched as one of {launched} processes (WORLD_SIZE), but torch.distributed is not initialised, so each would "
            "train a model of its own; without GPUs pass Accelerator(cpu=True) or TrainingArguments(use_cpu=True), else call "
            "torch.distributed.init_process_group() first, or unset WORLD_SIZE"
        )


def launched_with(plugin: str) -> bool:
    """Whether `accelerate launch` was told to use "DEEPSPEED" or "FSDP"."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("true", "1")


def check_shards(model: nn.Module, layers: dict[str, CondensedLinear], config: SRigLConfig) -> None:
    """Accept whole parameters, and those that FSDP2 (`fully_shard`) has sharded over all ranks; refuse others.

    Raises:
        ValueError: a layer's parameter was flattened away (FSDP1), or is sharded by something other than FSDP2 (tensor
            parallelism), over some of the ranks only, or on a sparsity ramp.
    """
    by_fsdp2 = any(isinstance(module, FSDPModule) for module in model.modules())
    for name, layer in layers.items():
        weight = layer.weight
        if weight.shape != layer.indices.shape:
            raise ValueError(
                f"layer {name}: expected a weight of shape {tuple(layer.indices.shape)}, found {tuple(weight.shape)} (FSDP1 "
                "flattens it): train with DDP, or with FSDP2 (torch.distributed.fsdp.fully_shard)"
            )
        if not isinstance(weight, DTensor):
            continue
        if not by_fsdp2 or weight.device_mesh.size() != world_size():
            raise ValueError(
                f"layer {name}: its weight is sharded over {weight.device_mesh.size()} of {world_size()} ranks by something "
                "other than fully_shard over all of them; tensor parallelism cannot train a condensed model, DDP can"
            )
        if config.ramp_until is not None:
            raise ValueError(
                f"layer {name}: a sparsity ramp changes sizes that FSDP2 has laid out: leave out ramp_until, or train with DDP"
            )


def is_mine(place: int) -> bool:
    """Whether this rank decides for the `place`-th layer of an update; the layers go round the ranks."""
    return rank() == place % world_size()


def mean_at_owner(tensor: Tensor, place: int) -> int:
    """The mean of a float tensor over all ranks, in place, on the rank that `is_mine` names; elsewhere it is spoilt.

    In the tensor's own dtype. Sums of bf16 or fp16 numbers rounded to the same format rank differently; `docs/scaling.md`
    counts how often. Only one rank needs the mean, so half the bytes of an all-reduce move.

    Returns:
        The bytes that this rank gave to the reduction; 0 in a single process.
    """
    ranks = world_size()
    if ranks == 1:
        return 0
    dist.reduce(tensor, dst=place % ranks)
    tensor /= ranks
    return tensor.numel() * tensor.element_size()


def broadcast_topology(layer: CondensedLinear) -> None:
    """Give every rank rank 0's indices and active rows (as bytes: gloo and NCCL know no int16).

    Through a copy: a broadcast into the tensor itself would not count as a write, by which kernels know a new topology.
    """
    if world_size() > 1:
        for tensor in (layer.indices, layer.active):
            copy = tensor.clone()
            dist.broadcast(copy.view(torch.uint8), src=0)
            tensor.copy_(copy)


def shared_mask(mask: Tensor | None, layer: CondensedLinear, place: int) -> tuple[Tensor, int]:
    """On every rank the new mask (N, K) of a layer that the rank named by `is_mine` has decided; None on the others.

    It travels as one bit for each position.

    Returns:
        The mask, and the bytes of the broadcast; 0 in a single process.
    """
    if world_size() == 1:
        if mask is None:
            raise RuntimeError("expected a mask from the only rank there is, got None")
        return mask, 0
    size = layer.out_features * layer.in_features
    place_values = 2 ** torch.arange(8, dtype=torch.uint8, device=layer.indices.device)
    if mask is None:
        bits = torch.empty(-(-size // 8), dtype=torch.uint8, device=layer.indices.device)
    else:
        padded = nn.functional.pad(mask.view(-1), (0, -size % 8))
        bits = (padded.view(-1, 8) * place_values).sum(1, dtype=torch.uint8)
    dist.broadcast(bits, src=place % world_size())
    received = ((bits[:, None] & place_values) != 0).view(-1)[:size]
    return received.view(layer.out_features, layer.in_features), bits.numel()
