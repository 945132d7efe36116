"""A dense teacher beside the labels, for the examples that fine-tune."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from shared import HubArguments, UserError, explained


@dataclass(kw_only=True)
class TeacherArguments:
    """Which dense model to learn from, and how much; options of `SparseTrainer`."""

    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "A dense model, fine-tuned on the same labels: on the Hub, or its folder."}
    )
    teacher_revision: str = field(default="main", metadata={"help": "A branch, tag or commit of the teacher."})
    distillation_temperature: float = field(default=2.0, metadata={"help": "Of the softmax of both models' logits."})
    distillation_weight: float = field(default=0.5, metadata={"help": "Share of the teacher's logits in the loss."})
    distillation_hidden_weight: float = field(
        default=0.0, metadata={"help": "What the teacher's hidden states count besides; it must be of the same shape."}
    )


def teaching(auto: Any, teacher_args: TeacherArguments, model: PreTrainedModel, fetch: HubArguments) -> dict[str, Any]:
    """Options of `SparseTrainer` for learning from a teacher, loaded by an auto class; none without a teacher.

    Raises:
        UserError: there is no such teacher, it numbers other labels or these otherwise, or they are no single classes.
    """
    if teacher_args.teacher_name_or_path is None:
        if teacher_args.distillation_hidden_weight:
            raise UserError("--distillation_hidden_weight needs --teacher_name_or_path")
        return {}
    if model.config.num_labels == 1:
        raise UserError(
            "a regression has no classes that a teacher could tell more of: leave out --teacher_name_or_path"
        )
    if model.config.problem_type == "multi_label_classification":
        raise UserError(
            "a teacher tells one class of many, not several labels at once: leave out --teacher_name_or_path"
        )
    with explained(OSError, ValueError, RuntimeError, before="the teacher cannot be loaded: "):
        where = fetch.hub() | {"revision": teacher_args.teacher_revision}
        teacher = auto.from_pretrained(teacher_args.teacher_name_or_path, **where)
    known, wanted = teacher.config.id2label, model.config.id2label
    if known != wanted:
        raise UserError(
            f"the teacher's labels must be the model's, {_listed(wanted)}; they are {_listed(known)}: "
            "fine-tune it on the same data with --dense"
        )
    return {
        "teacher": teacher,
        "distillation_temperature": teacher_args.distillation_temperature,
        "distillation_weight": teacher_args.distillation_weight,
        "distillation_hidden_weight": teacher_args.distillation_hidden_weight,
    }


def _listed(labels: dict[int, str]) -> str:
    return ", ".join(str(labels[number]) for number in sorted(labels))
