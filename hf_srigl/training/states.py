"""What an optimizer keeps for each weight, wherever it keeps it: found by walking the whole object."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.distributed.tensor import DTensor

_PLAIN = (Tensor, nn.Parameter, DTensor)
_SEQUENCES = (list, tuple, set, frozenset, deque)
# What holds no state of an optimizer, or is the model itself
_CLOSED = (
    FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, nn.Module, str, bytes, int, float, complex,
    torch.device, torch.dtype, torch.Generator,
)  # fmt: skip


class Found(NamedTuple):
    """A tensor inside an optimizer.

    Attributes:
        path: where, such as ``optimizer.state[...]['exp_avg']``. tensor: itself.
        owner: the parameter whose entry of a dictionary holds it; None if it stands under no parameter.
        direct: it is ``dictionary[parameter][key]`` and nothing deeper or shallower.
    """

    path: str
    tensor: Tensor
    owner: nn.Parameter | None
    direct: bool


def parts(optimizer: optim.Optimizer) -> list[optim.Optimizer]:
    """The optimizer and all that it wraps.

    Example:
        >>> len(parts(optim.SGD([nn.Parameter(torch.ones(2))])))
        1
    """
    return [value for value in _values(optimizer) if isinstance(value, optim.Optimizer)]


def tensors(optimizer: optim.Optimizer) -> list[Found]:
    """Every tensor that the optimizer keeps but its parameters and their gradients.

    Example:
        >>> weight = nn.Parameter(torch.ones(3)); adam = optim.AdamW([weight])
        >>> weight.sum().backward(); adam.step()
        >>> [(found.path, found.direct) for found in tensors(adam) if found.tensor.ndim]
        [("AdamW.state[...]['exp_avg']", True), ("AdamW.state[...]['exp_avg_sq']", True)]
    """
    own = parameters(optimizer)
    theirs = set(own) | {id(p.grad) for p in own.values() if p.grad is not None}
    return [found for found in _walk(optimizer, own) if id(found.tensor) not in theirs]


def parameters(optimizer: optim.Optimizer) -> dict[int, nn.Parameter]:
    """id -> parameter, of the optimizer and of all that it wraps."""
    groups = [group for part in parts(optimizer) for group in part.param_groups]
    return {id(p): p for group in groups for p in group["params"]}


def _children(value: Any) -> Iterator[tuple[Any, str, Any]]:
    """(key, how it reads in a path, child) of a container or object."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield key, "[...]" if isinstance(key, Tensor) else f"[{key!r}]", child
    elif isinstance(value, _SEQUENCES):
        for place, child in enumerate(value):
            yield None, f"[{place}]", child
    elif not isinstance(value, (*_CLOSED, Tensor)) and value is not None:
        for key, child in getattr(value, "__dict__", {}).items():
            yield None, f".{key}", child


def _values(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (*_CLOSED, Tensor)):
        return
    seen.add(id(value))
    yield value
    for _, _, child in _children(value):
        yield from _values(child, seen)


def _walk(root: Any, own: dict[int, nn.Parameter]) -> Iterator[Found]:
    seen: set[int] = set()
    # depth: how many steps below the entry of the owner, 0 being the entry itself
    todo: list[tuple[Any, str, nn.Parameter | None, int]] = [(root, type(root).__name__, None, 0)]
    while todo:
        value, path, owner, depth = todo.pop()
        if id(value) in seen:
            continue
        if isinstance(value, Tensor):
            seen.add(id(value))
            yield Found(path, value, owner, owner is not None and depth == 1)
            continue
        if isinstance(value, _CLOSED):
            continue
        seen.add(id(value))
        children: list[tuple[Any, str, nn.Parameter | None, int]] = []
        for key, said, child in _children(value):
            mine = own.get(id(key) if isinstance(key, Tensor) else key if type(key) is int else -1)
            if mine is not None:
                children.append((child, path + said, mine, 0 if isinstance(key, Tensor) else 2))
            else:
                deeper = depth + 1 if type(value) is dict or owner is None else depth + 2
                children.append((child, path + said, owner, deeper))
        todo.extend(reversed(children))


def is_plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor of floats, no subclass that stores numbers in another way."""
    return type(tensor) in _PLAIN and tensor.is_floating_point()
