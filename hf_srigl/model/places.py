"""Where a model holds its modules, so that one can be put in the place of another wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

Places = dict[int, list[tuple[Any, Any]]]  # id of a module -> containers that hold it, each with the key or position


def places_of(model: nn.Module) -> Places:
    """Every place at which a module of `model` holds another one: as a child, or in a plain attribute, list, tuple or dict.

    Some models (Mask2Former) walk a plain list of layers that are children elsewhere too; replacing the child alone would leave
    the old layer computing, untrained and unsaved.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2)); model.order = ([model[0]],)
        >>> len(places_of(model)[id(model[0])])
        2
    """
    places: Places = {}
    seen: set[int] = set()
    for module in model.modules():
        _look(vars(module), places, seen)
    return places


def replace(places: Places, old: nn.Module, new: nn.Module) -> None:
    """Put `new` at every place of `old`; a shared module stays shared.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2)); model.order = ([model[0]],)
        >>> replace(places_of(model), model[0], nn.ReLU()); model.order
        ([ReLU()],)
    """
    places[id(new)] = places.pop(id(old), [])
    for container, key in places[id(new)]:
        container[key] = _swapped(container[key], old, new)


def _look(container: dict[Any, Any] | list[Any], places: Places, seen: set[int]) -> None:
    if id(container) in seen:
        return
    seen.add(id(container))
    for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
        for module in _modules_in(value):
            places.setdefault(id(module), []).append((container, key))
        for inner in _containers_in(value):
            _look(inner, places, seen)


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """The modules that `value` is, or that a tuple holds: those that are replaced by writing to where `value` stands."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _modules_in(item)


def _containers_in(value: Any) -> Iterator[Any]:
    if isinstance(value, list | dict):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _containers_in(item)


def _swapped(value: Any, old: nn.Module, new: nn.Module) -> Any:
    if value is old:
        return new
    if isinstance(value, tuple) and any(module is old for module in _modules_in(value)):
        items = [_swapped(item, old, new) for item in value]
        return type(value)(*items) if type(value) is not tuple else tuple(items)  # a named tuple takes them one by one
    return value
