"""RigL (Evci et al., arXiv 1911.11134), the unstructured baseline: the same budget, without a fan-in to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_srigl.rule.schedule import floor_count
from hf_srigl.rule.selection import largest, score


def rigl_mask(weight: Tensor, mask: Tensor, grad: Tensor, *, drop_fraction: float) -> Tensor:
    """One RigL topology update of one layer: drop the smallest ``|weight|``, grow as many of the largest ``|grad|``.

    Args:
        weight, grad: (N, K) float. mask: (N, K) bool, the active positions. drop_fraction: share to drop, in [0, 1].

    Returns:
        The new mask, (N, K) bool, with as many positions. What was just dropped may grow again. Ties go to the lower
        flat index.

    Source: arXiv 1911.11134, section 3 and algorithm 1.

    Example:
        >>> weight = torch.tensor([[3.0, 2.0, 0.0, 0.0], [0.0, 0.1, 0.2, 0.0]])
        >>> grad = torch.tensor([[0.0, 0.0, 0.1, 0.2], [9.0, 0.0, 0.0, 8.0]])
        >>> rigl_mask(weight, weight != 0, grad, drop_fraction=0.5).int()
        tensor([[1, 1, 0, 0],
                [1, 0, 0, 1]], dtype=torch.int32)
    """
    nnz = int(mask.count_nonzero())
    n_drop = floor_count(drop_fraction * nnz)
    kept = torch.zeros_like(mask)
    kept.view(-1)[largest(score(weight), mask, nnz - n_drop)] = True
    new = kept.clone()
    new.view(-1)[largest(score(grad), ~kept, n_drop)] = True
    return new
