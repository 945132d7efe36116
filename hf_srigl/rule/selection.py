"""The largest of many scores, exactly, with ties to the lower index, on any device and without a full sort."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE_STRIDE = 37  # prime, so that it does not walk along the columns of a usual layer


def score(tensor: Tensor) -> Tensor:
    """Absolute value in a dtype every device can select in; exact for bf16 and fp16."""
    return tensor.detach().abs() if tensor.dtype == torch.float64 else tensor.detach().float().abs()


def largest(score: Tensor, eligible: Tensor, count: int) -> Tensor:
    """Flat positions, ascending, of the `count` largest scores among the eligible; ties to the lower flat index.

    A threshold guessed from a sample leaves little to select from. A bad guess costs time, never exactness: every
    eligible score at or above it is looked at, and if these are too few, all are.
    """
    eligible, score = eligible.reshape(-1), score.reshape(-1)
    if count <= 0:
        return torch.empty(0, dtype=torch.int64, device=score.device)
    sample = torch.where(eligible[::SAMPLE_STRIDE], score[::SAMPLE_STRIDE], -1)
    rank_in_sample = int(1.1 * count / SAMPLE_STRIDE) + 16
    if rank_in_sample < sample.numel():
        guess = sample.kthvalue(sample.numel() - rank_in_sample).values
        positions = (eligible & (score >= guess)).nonzero().squeeze(1)
    if rank_in_sample >= sample.numel() or positions.numel() < count:
        positions = eligible.nonzero().squeeze(1)
    scores = score[positions]
    threshold = scores.kthvalue(max(1, scores.numel() - count + 1)).values
    above = scores > threshold
    at = scores == threshold
    room = count - above.sum()
    return positions[above | (at & (at.cumsum(0) <= room))]


def largest_per_row(score: Tensor, counts: Tensor) -> Tensor:
    """In row r, the ``counts[r]`` largest scores, ties to the lower column: bool (N, K).

    A negative score marks a position that is not eligible; every row must have at least ``counts[r]`` others.
    """
    most = int(counts.max()) if counts.numel() else 0
    if most == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    top = score.topk(min(most + 1, score.shape[1]), dim=1).values
    top = torch.nn.functional.pad(top, (0, 1), value=-torch.inf)
    threshold = top.gather(1, (counts[:, None] - 1).clamp(min=0)).masked_fill_(counts[:, None] == 0, torch.inf)
    chosen = score >= threshold
    tied = (top.gather(1, counts[:, None]) == threshold).squeeze(1)  # the next value is the threshold again
    if bool(tied.any()):
        tied_score, tied_threshold = score[tied], threshold[tied]
        above = tied_score > tied_threshold
        at = tied_score == tied_threshold
        room = counts[tied] - above.sum(1)
        chosen[tied] = above | (at & (at.cumsum(1) <= room[:, None]))
    return chosen
