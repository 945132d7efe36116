"""Learning from a dense teacher's logits as well as from labels (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """``T^2 KL(teacher / T || student / T)``, averaged over rows (examples or tokens); 0-d float32.

    Args:
        student, teacher: logits (..., classes). temperature: T, above 0.
        weights: (...), how much each row counts (an attention mask, say); default: all alike.

    Raises:
        ValueError: the shapes differ, or there is one class only (a regression), which has nothing to distill.

    Source: arXiv 1503.02531, section 2: the factor T^2 keeps the gradient's size when T changes.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986123]])
        >>> round(distillation_loss(student, teacher, 1.0).item(), 4)  # 1/4 ln(1/2) + 3/4 ln(3/2)
        0.1308
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the teacher must answer in the student's shape {tuple(student.shape)}, its logits are {tuple(teacher.shape)}"
        )
    if student.shape[-1] == 1:
        raise ValueError("logits of one class (a regression) have nothing to distill: leave out the teacher")
    student, teacher = (torch.log_softmax(logits.float() / temperature, -1) for logits in (student, teacher))
    rows = (teacher.exp() * (teacher - student)).sum(-1)
    if weights is None:
        return temperature**2 * rows.mean()
    weights = weights.to(rows.dtype)
    return temperature**2 * (rows * weights).sum() / weights.sum().clamp(min=1)


def token_weights(inputs: Mapping[str, Any], rows: torch.Size, *, encoder_decoder: bool = False) -> Tensor | None:
    """What counts among the rows of a batch: real tokens; None if there is nothing that says so, and all count alike.

    Args:
        inputs: of the model. rows: the shape of its logits without the classes.
        encoder_decoder: the rows are those of the decoder, whose real tokens have labels other than -100; elsewhere
            `attention_mask` tells.

    Example:
        >>> token_weights({"attention_mask": torch.tensor([[1, 1, 0]])}, torch.Size([1, 3]))
        tensor([[ True,  True, False]])
    """
    name, ignored = ("labels", -100) if encoder_decoder else ("attention_mask", 0)
    tensor = inputs.get(name)
    if len(rows) == 2 and isinstance(tensor, Tensor) and tensor.shape == rows:
        return tensor != ignored
    return None
