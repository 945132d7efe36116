"""Learning from a dense teacher as well as from labels: its logits (arXiv 1503.02531), its hidden states (arXiv 2310.06927)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1e-6  # squared norm of a hidden state to compare with; padding may be 0
HIDDEN_STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")  # in the outputs of a model


@dataclass(frozen=True)
class Distillation:
    """What a model learns from a teacher besides its own loss.

    Args:
        teacher: a dense model; it takes the student's inputs and is never trained.
        temperature: above 0, of `distillation_loss`. weight: in (0, 1], of `distillation_loss`.
        hidden_weight: at least 0, of `hidden_state_loss`; with 0 nobody is asked for hidden states.
        encoder_decoder: whether logits are those of a decoder.

    Raises:
        ValueError: an option out of its range, or a teacher that cannot give hidden states where they are wanted.

    Example:
        >>> teacher = lambda logits: {"logits": logits}
        >>> distillation = Distillation(teacher, temperature=1.0, weight=0.5)
        >>> outputs = distillation.answer({"logits": torch.zeros(1, 2)})
        >>> distillation.loss({}, {"logits": torch.zeros(1, 2)}, outputs)
        tensor(0.)
    """

    teacher: nn.Module
    temperature: float = 2.0
    weight: float = 0.5
    hidden_weight: float = 0.0
    encoder_decoder: bool = False

    def __post_init__(self) -> None:
        check_weights(self.temperature, self.weight, self.hidden_weight)
        if self.hidden_weight:
            check_gives_hidden_states(self.teacher)

    def inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with which student and teacher answer what `loss` compares."""
        return {**inputs, "output_hidden_states": True} if self.hidden_weight else dict(inputs)

    def answer(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the teacher makes of `inputs`."""
        with torch.no_grad():
            return self.teacher(**inputs)

    def loss(self, inputs: Mapping[str, Any], student: Mapping[str, Any], teacher: Mapping[str, Any]) -> Tensor:
        """Both losses, each times its weight; 0-d float32."""
        rows = teacher["logits"].shape[:-1]
        weights = token_weights(inputs, rows, encoder_decoder=self.encoder_decoder)
        loss = self.weight * distillation_loss(student["logits"], teacher["logits"], self.temperature, weights)
        if self.hidden_weight:
            loss = loss + self.hidden_weight * hidden_state_loss(inputs, student, teacher)
        return loss


def check_weights(temperature: float, weight: float, hidden_weight: float) -> None:
    """Raises ValueError unless each is in its range, as `Distillation` has them."""
    if not temperature > 0 or not 0 < weight <= 1 or not hidden_weight >= 0:
        raise ValueError(
            "expected distillation_temperature above 0, distillation_weight in (0, 1] and distillation_hidden_weight "
            f"of at least 0, got {temperature}, {weight} and {hidden_weight}"
        )


def check_gives_hidden_states(model: nn.Module) -> None:
    """Raises ValueError unless the model's `forward` takes ``output_hidden_states``."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "output_hidden_states" not in parameters and not takes_any:
        raise ValueError(
            f"{type(model).__name__}.forward takes no output_hidden_states, so its hidden states cannot be compared: "
            "leave distillation_hidden_weight at 0"
        )


def hidden_state_loss(inputs: Mapping[str, Any], student: Mapping[str, Any], teacher: Mapping[str, Any]) -> Tensor:
    """``mean ||student - teacher||^2 / ||teacher||^2`` over tokens, then over layers, embeddings aside; 0-d float32.

    Args:
        inputs: of the model; they tell which tokens are real, as in `token_weights`.
        student, teacher: outputs with any of `HIDDEN_STATES`, tuples of (batch, tokens, features), embeddings first.

    Raises:
        ValueError: an output has no hidden states, or their numbers or shapes differ.

    Source: SquareHead (arXiv 2310.06927), here for each token by itself, so that no outlier outweighs the rest.

    Example:
        >>> states = [torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])]
        >>> other = [torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [1.0, 2.0]]])]
        >>> hidden_state_loss({}, {"hidden_states": other}, {"hidden_states": states})  # (0 + 1/4) / 2
        tensor(0.1250)
    """
    losses = []
    for name in HIDDEN_STATES:
        here, there = student.get(name) or (), teacher.get(name) or ()
        shapes = [[tuple(state.shape) for state in states] for states in (here, there)]
        if shapes[0] != shapes[1] or any(len(shape) != 3 for shape in shapes[0]):
            raise ValueError(
                f"distillation_hidden_weight needs {name} of the same shapes (batch, tokens, features) from student and "
                f"teacher, got {shapes[0]} and {shapes[1]}: take a teacher of the same architecture, or leave it at 0"
            )
        for state, expected in zip(here[1:], there[1:], strict=True):
            weights = token_weights(inputs, state.shape[:-1], encoder_decoder=name == "decoder_hidden_states")
            state, expected = state.float(), expected.float()
            size = expected.square().sum(-1).clamp(min=SMALLEST)
            losses.append(_mean((state - expected).square().sum(-1) / size, weights))
    if not losses:
        raise ValueError(
            "distillation_hidden_weight needs hidden states, but neither student nor teacher gives any: leave it at 0"
        )
    return torch.stack(losses).mean()


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
    return temperature**2 * _mean((teacher.exp() * (teacher - student)).sum(-1), weights)


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


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return rows.mean()
    weights = weights.to(rows.dtype)
    return (rows * weights).sum() / weights.sum().clamp(min=1)
