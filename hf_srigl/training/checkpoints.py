"""Checkpoints that appear whole or not at all, whatever moment a run is killed at.

A checkpoint is written into a hidden folder beside its place, flushed to the disk, and renamed when all ranks have
written their files. So every folder named ``checkpoint-N`` is complete, and ``transformers.trainer_utils.
get_last_checkpoint`` finds the last complete one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from transformers.trainer_utils import sort_checkpoints

from hf_srigl.processes import barrier, rank

INCOMPLETE = "_incomplete"  # what begins like this is left out of the Trainer's uploads


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[str]:
    """A folder to write a checkpoint into; it becomes `path` at the end of the block, and never before.

    If the block raises (a full disk, say), what it wrote is removed, and neither `path` nor any other checkpoint is
    touched. A folder that was at `path` is replaced. Collective: with several ranks all of them enter; if one fails, the
    others stop with a communication error as soon as its process has ended. One such block at a time for each parent.

    Example:
        >>> import os
        >>> with written_whole(tmp_path / "checkpoint-5") as folder:
        ...     torch.save(torch.ones(3), os.path.join(folder, "weights"))
        ...     print(os.listdir(tmp_path))
        ['_incomplete']
        >>> os.listdir(tmp_path), os.listdir(tmp_path / "checkpoint-5")
        (['checkpoint-5'], ['weights'])
    """
    parent, name = os.path.split(os.path.abspath(path))
    incomplete = os.path.join(parent, INCOMPLETE)
    staging = os.path.join(incomplete, name)
    if _first_on_its_machine():
        shutil.rmtree(incomplete, ignore_errors=True)  # of a run that was killed
        os.makedirs(staging, exist_ok=True)
    barrier()
    try:
        yield staging
        barrier()
        if rank() == 0:
            _publish(staging, path)
        barrier()
        if _first_on_its_machine() and os.path.isdir(staging):  # machines that share no file system have one each
            _publish(staging, path)
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise


def discard(path: str | os.PathLike[str]) -> None:
    """Delete a checkpoint so that it, too, is gone whole or not at all.

    Example:
        >>> (tmp_path / "checkpoint-5").mkdir(); discard(tmp_path / "checkpoint-5")
        >>> list(tmp_path.iterdir())
        []
    """
    parent, name = os.path.split(os.path.abspath(path))
    incomplete = os.path.join(parent, INCOMPLETE)
    os.makedirs(incomplete, exist_ok=True)
    os.rename(path, os.path.join(incomplete, f"old-{name}"))
    shutil.rmtree(incomplete)


def discard_older(folder: str, limit: int | None, best: str | None) -> None:
    """The Trainer's ``save_total_limit``: keep the newest checkpoint, the best one, and the youngest others.

    Args:
        folder: that of the checkpoints. limit: how many may stay; None or 0: all. best: a path that stays in any case.
    """
    checkpoints = sort_checkpoints(folder, use_mtime=True) if limit else []
    protected = {os.path.abspath(path) for path in (*checkpoints[-1:], best) if path is not None}
    excess = len(checkpoints) - max(limit or 0, len(protected))
    for checkpoint in [path for path in checkpoints if os.path.abspath(path) not in protected][: max(0, excess)]:
        discard(checkpoint)


def _first_on_its_machine() -> bool:
    return int(os.environ.get("LOCAL_RANK", rank())) <= 0  # -1: older launchers' word for one process


def _publish(staging: str, path: str | os.PathLike[str]) -> None:
    for folder, _, files in os.walk(staging):
        for file in [*files, "."]:
            _flush(os.path.join(folder, file))
    replaced = os.path.isdir(path)
    if replaced:
        os.rename(path, f"{staging}.old")
    try:
        os.rename(staging, path)
    except OSError:
        if replaced:
            os.rename(f"{staging}.old", path)
        raise
    _flush(os.path.dirname(os.path.abspath(path)))
    shutil.rmtree(os.path.dirname(staging))


def _flush(path: str) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
