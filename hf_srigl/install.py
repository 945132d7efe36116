"""How the package is installed, said in one place. RELEASING.md says what changes here once it is on the package index."""

from __future__ import annotations


def how(extra: str = "") -> str:
    """The command that installs the package, with one of its extras where something optional is missing.

    Example:
        >>> how(), how("plots")
        ("pip install . in a clone of hf_srigl's repository", "pip install '.[plots]' in a clone of hf_srigl's repository")
    """
    what = f"'.[{extra}]'" if extra else "."
    return f"pip install {what} in a clone of hf_srigl's repository"
