"""Which positions of a layer were ever active: the in-time over-parameterization of Liu et al. (arXiv 2102.02887)."""

from __future__ import annotations

import torch
from torch import Tensor


class Explored:
    """One bit for each position of an (N, K) layer, and the count of set bits; bits are never cleared.

    Example:
        >>> explored = Explored.of(torch.tensor([[True, False], [False, False]]))
        >>> explored.add(torch.tensor([0, 1]))
        >>> explored.rate
        0.5
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.bits = torch.zeros(-(-size // 8), dtype=torch.uint8, device=device)
        self.count = 0

    @classmethod
    def of(cls, mask: Tensor) -> Explored:
        """With the positions of `mask`, (N, K) bool, as all that was tried."""
        explored = cls(mask.numel(), mask.device)
        explored.add(mask.reshape(-1).nonzero().squeeze(1))
        return explored

    def add(self, positions: Tensor) -> None:
        """Mark flat positions, int64, each at most once, as tried."""
        byte, bit = positions // 8, (1 << (positions % 8)).to(torch.uint8)
        new = (self.bits[byte] & bit) == 0
        self.bits.index_add_(0, byte[new], bit[new])  # the new bits of one byte differ, so adding is "or"
        self.count += int(new.sum())

    @property
    def rate(self) -> float:
        """Share of all positions ever tried (the ITOP rate), in (0, 1]."""
        return self.count / self.size

    def load(self, bits: Tensor) -> None:
        """Continue from the bits of an earlier run, (ceil(N * K / 8),) uint8.

        Raises:
            ValueError: the bits are those of another shape.
        """
        if bits.shape != self.bits.shape or bits.dtype != torch.uint8:
            raise ValueError(f"expected {tuple(self.bits.shape)} uint8 bits, got {tuple(bits.shape)} {bits.dtype}")
        self.bits = bits.to(self.bits.device, copy=True)
        self.count = sum(int(((self.bits >> i) & 1).sum()) for i in range(8))
