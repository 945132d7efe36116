"""GLUE's tasks and their metrics: from the Hub through `evaluate`, or the same numbers without it."""

from __future__ import annotations

import logging
from typing import Any

import datasets
import evaluate
import numpy as np

logger = logging.getLogger("shared")

# Task -> the columns with its one or two sentences.
GLUE_TASKS: dict[str, tuple[str, str | None]] = {
    "cola": ("sentence", None),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence", None),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}


class LocalMetric(evaluate.Metric):
    """The metric of a GLUE task (Wang et al., arXiv 1804.07461), or ``mse`` or ``accuracy``, computed here.

    Example:
        >>> LocalMetric("mrpc").compute(predictions=[1, 1, 0, 0], references=[1, 0, 0, 0])
        {'accuracy': 0.75, 'f1': 0.6666666666666666}
    """

    def __init__(self, config_name: str) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("float32" if self.config_name in ("stsb", "mse") else "int64")
        return evaluate.MetricInfo(
            description=f"The metric of {self.config_name}.",
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        kind = np.float64 if self.config_name in ("stsb", "mse") else np.int64
        guess, truth = np.asarray(predictions, dtype=kind), np.asarray(references, dtype=kind)
        match self.config_name:
            case "cola":
                return {"matthews_correlation": _correlation(guess, truth)}  # of binary labels the two are one
            case "stsb":
                return {"pearson": _correlation(guess, truth), "spearmanr": _correlation(_ranks(guess), _ranks(truth))}
            case "mrpc" | "qqp":
                both, either = ((guess == 1) & (truth == 1)).sum(), (guess == 1).sum() + (truth == 1).sum()
                return {"accuracy": float((guess == truth).mean()), "f1": float(2 * both / either) if either else 0.0}
            case "mse":
                return {"mse": float(((guess - truth) ** 2).mean())}
            case _:
                return {"accuracy": float((guess == truth).mean())}


def multi_label_metrics(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """F1 over all decisions (micro) and averaged over classes (macro), and the share of rows with all decisions right.

    Args:
        guess, truth: (n, classes), what is not 0 is a label of its row. A class that is neither there nor guessed has F1 0.

    Example:
        >>> multi_label_metrics(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]]))
        {'f1_micro': 0.8, 'f1_macro': 0.8333333333333333, 'accuracy': 0.5}
    """
    guess, truth = np.asarray(guess) != 0, np.asarray(truth) != 0
    both, either = (guess & truth).sum(0), guess.sum(0) + truth.sum(0)  # (classes,)
    per_class = 2 * both / np.maximum(either, 1)
    return {
        "f1_micro": float(2 * both.sum() / max(either.sum(), 1)),
        "f1_macro": float(per_class.mean()),
        "accuracy": float((guess == truth).all(1).mean()),
    }


def load_metric(task: str | None, regression: bool) -> evaluate.Metric:
    """The metric of a GLUE task; without a task accuracy, or the squared error of a regression."""
    names = ("glue", task) if task is not None else ("mse",) if regression else ("accuracy",)
    try:
        return evaluate.load(*names)
    except (OSError, ConnectionError, ImportError) as error:
        logger.info(
            f"evaluate.load{names} is not available ({type(error).__name__}): the same numbers are computed here."
        )
        return LocalMetric(names[-1])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of (n,) and (n,); 0 if one of them never changes, as scikit-learn has it for labels."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of (n,) values; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
