"""The docstrings here say briefly what the API reference wants spelled out: brought into that form as they are read.

`Example:` is Google's `Examples:`, and `a: one. b: two.` or `a, b: both.` on a line of `Args:` are an entry each.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^( *)(Args|Attributes):\n((?:\1 +.*\n?|\n)*)", flags=re.MULTILINE)


class Spelled(griffe.Extension):
    """Rewrites every docstring of the package after it was loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        _spell(pkg)


def _spell(thing: griffe.Module | griffe.Class | griffe.Function | griffe.Attribute) -> None:
    if thing.docstring is not None:
        text = re.sub(r"^( *)Example:$", r"\1Examples:", thing.docstring.value, flags=re.MULTILINE)
        names = _parameters(thing)
        thing.docstring.value = _SECTION.sub(lambda section: _entries(section, names), f"{text}\n").rstrip("\n")
    for member in thing.members.values():
        if not member.is_alias:
            _spell(member)


def _parameters(thing: Any) -> set[str]:
    if thing.is_class:
        init = thing.members.get("__init__")
        of_init = _parameters(init) if init is not None and not init.is_alias else set()
        return of_init | {name for name, member in thing.members.items() if member.is_attribute}
    return {parameter.name.lstrip("*") for parameter in thing.parameters} if thing.is_function else set()


def _entries(section: re.Match[str], names: set[str]) -> str:
    indent, title, body = section.groups()
    first = re.search(r"^( +)\S", body, flags=re.MULTILINE)
    if first is None:
        return section[0]
    start = first[1]
    one_of = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or r"(?!)"
    body = re.sub(rf"(?<=[.;]) (?=(?:{one_of}): )", f"\n{start}", body)

    def each(entry: re.Match[str]) -> str:
        return "".join(f"{start}{name.strip()}: {entry[2]}\n" for name in entry[1].split(","))

    body = re.sub(rf"^{start}(\w+(?:, \w+)+): ((?:.*)(?:\n{start} +.*)*)\n?", each, body, flags=re.MULTILINE)
    return f"{indent}{title}:\n{body}"
