"""The compiled library of the CPU kernels: found, checked and declared once, or the reason why there is none."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

ABI = 3  # of src/condensed.h
ISA_VARIABLE = "HF_SRIGL_ISA"  # avx512, avx2, neon or portable: use this instruction set, for tests and comparisons
PATH_VARIABLE = "HF_SRIGL_LIBRARY"  # path of another build of the library, such as the sanitized one of `make asan`

_ERRORS = {
    1: "bad argument",
    2: "indices and active do not describe a condensed layer (every active row needs the same number of columns, "
    "ascending and within the inputs, and -1 in the unused slots at the end)",
    3: "out of memory",
}

_pointer, _i64, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "srigl_isa": (ctypes.c_char_p, []),
    "srigl_set_isa": (_int, [ctypes.c_char_p]),
    "srigl_has_threads": (_int, []),
    "srigl_plan_create": (_int, [_pointer, _int, _pointer, _i64, _i64, _i64, ctypes.POINTER(_pointer)]),
    "srigl_plan_free": (None, [_pointer]),
    "srigl_plan_bytes": (_i64, [_pointer]),
    "srigl_plan_fan_in": (_i64, [_pointer]),
    "srigl_plan_fits": (_int, [_pointer, _pointer, _pointer]),
    "srigl_fingerprint": (ctypes.c_uint64, [_pointer, _int, _pointer, _i64, _i64]),
    "srigl_sample": (ctypes.c_uint64, [_pointer, _i64, _int]),
    "srigl_forward": (
        _int,
        [_pointer, _pointer, _pointer, _pointer, _pointer, _i64, _pointer, _i64, _int, _int],
    ),
    "srigl_backward": (
        _int,
        [_pointer, _pointer, _pointer, _pointer, _i64, _pointer, _i64, _pointer, _pointer, _i64, _int, _int],
    ),
    "srigl_scatter": (_int, [_pointer, _pointer, _pointer, _pointer, _int, _int]),
}


def _find() -> Path | None:
    """The library next to this file; an editable install puts it elsewhere, in a folder that the package names too."""
    other = os.environ.get(PATH_VARIABLE)
    if other is not None:
        return Path(other)
    folders = [Path(__file__).parent, *map(Path, sys.modules["hf_srigl.ops.cpu"].__path__)]
    found = (path for folder in folders for path in sorted(folder.glob("_condensed.*")))
    return next((path for path in found if path.suffix in {".so", ".dylib", ".dll"}), None)


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library and "", or None and why there is none."""
    path = _find()
    if path is None:
        return None, "the package was installed without compiled kernels (no working C++ compiler at that time)"
    try:
        lib = ctypes.CDLL(str(path))
        abi = lib.srigl_abi()
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {error}"
    if abi != ABI:
        return None, f"{path} has interface {abi}, expected {ABI}: reinstall the package"
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    isa_wanted = os.environ.get(ISA_VARIABLE, "")
    if lib.srigl_set_isa(isa_wanted.encode()):
        return None, f"{ISA_VARIABLE}={isa_wanted!r}: this machine or build has no such instruction set"
    return lib, ""


_library, _reason = _load()


def available() -> bool:
    """Whether the kernels can be used."""
    return _library is not None


def reason() -> str:
    """Why the kernels cannot be used; "" if they can."""
    return _reason


def loaded() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: there is none.
    """
    if _library is None:
        raise RuntimeError(f"there are no native kernels: {_reason}")
    return _library


def isa() -> str:
    """The instruction set in use: avx512, avx2, neon or portable."""
    return str(loaded().srigl_isa().decode())


def check(status: int) -> None:
    """Raise what a kernel's status means."""
    if status == 0:
        return
    message = f"condensed kernel: {_ERRORS.get(status, f'error {status}')}"
    raise MemoryError(message) if status == 3 else ValueError(message)
