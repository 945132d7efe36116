"""One model out of several condensed ones: averaged dense, condensed again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from hf_srigl.model.attachment import config_of
from hf_srigl.model.surgery import densify, sparsify

M = TypeVar("M", bound=nn.Module)


def average_models(models: Sequence[M]) -> M:
    """The average of condensed models of one architecture, at their sparsity; the models stay as they are.

    State dicts of different topologies must not be averaged: slots stand for different connections. Here the dense forms
    are averaged, and of each row the largest fan-in magnitudes stay. What is cut off is lost, so topologies that share
    little lose much: compare on data that was held back. Neurons that ablation took away get their share back.

    Raises:
        ValueError: there is no model, one is not condensed, or their tensors have other names or shapes.

    Example:
        >>> from hf_srigl import SRigLConfig
        >>> models = [sparsify(nn.Sequential(nn.Linear(8, 4)), SRigLConfig(sparsity=0.5)) for _ in range(2)]
        >>> average_models(models)[0].fan_in
        4
    """
    if not models:
        raise ValueError("expected at least one condensed model to average, got none")
    config = config_of(models[0])
    if config is None or any(config_of(model) is None for model in models):
        raise ValueError("expected condensed models; average dense models by their state dicts")
    average = copy.deepcopy(models[0])
    densify(average)
    total = {
        name: value.double() if value.is_floating_point() else value for name, value in average.state_dict().items()
    }
    for model in models[1:]:
        other = densify(copy.deepcopy(model)).state_dict()
        if {n: v.shape for n, v in other.items()} != {n: v.shape for n, v in total.items()}:
            raise ValueError("expected models of one architecture, got tensors of other names or shapes")
        total = {n: v + other[n].double() if v.is_floating_point() else v for n, v in total.items()}
    with torch.no_grad():
        average.load_state_dict({n: v / len(models) if v.is_floating_point() else v for n, v in total.items()})
    sparsify(average, replace(config, init="magnitude", ramp_until=None, ramp_from=0.0))
    return average
