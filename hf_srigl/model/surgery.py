"""Dense model <-> condensed model, in place: `sparsify`, `densify`, and the empty layers that loading fills."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hf_srigl.config import SRigLConfig
from hf_srigl.model.attachment import condensed_layers, detach, remember, settle
from hf_srigl.model.calibration import norms_for
from hf_srigl.model.conversion import dense_weight, empty_layer, expand, first_layer
from hf_srigl.model.places import places_of, replace
from hf_srigl.model.targets import sound_targets
from hf_srigl.rule.distribution import fan_in_per_layer

logger = logging.get_logger(__name__)

MUCH = 0.8  # from here on cutting a pretrained model at once costs far more than a ramp (docs/accuracy.md)


def sparsify(
    model: nn.Module, config: SRigLConfig, *, calibration: Iterable[Any] | None = None, progress: bool = False
) -> nn.Module:
    """Make the target layers of `model` condensed, in place, and return the model.

    A Hugging Face model also learns how to save and load its condensed form: `save_pretrained`, `from_pretrained`,
    `Trainer` checkpoints and `push_to_hub` work as before. Call it on the model that you will save, not on a part of it:
    to sparsify a part, use `target_modules`. Create the optimizer after this call.

    Args:
        model: any module; which layers are targets is told by `hf_srigl.model.targets.find_targets`.
        config: sparsity, distribution, targets and start (`init`); the rest is for training.
        calibration: for ``init="wanda"``: batches (a DataLoader, say) to run the model on, 128 examples are enough; each
            a dict, list, tuple or tensor (`hf_srigl.model.calibration.input_norms`).
        progress: show a bar, one tick for each layer (unless transformers' bars are disabled).

    Raises:
        ValueError: the model is condensed already, nothing matches, a layer named explicitly cannot be made sparse,
            weights are not finite, or calibration data is missing or not wanted. The model is unchanged then.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> sparsify(model, SRigLConfig(sparsity=0.9, exclude_modules=["2"]))
        Sequential(
          (0): CondensedLinear(in_features=20, out_features=30, bias=True, fan_in=2, active=30/30)
          (1): ReLU()
          (2): Linear(in_features=30, out_features=2, bias=True)
        )
    """
    targets = sound_targets(model, config)
    norms = norms_for(model, targets, config, calibration)
    shapes = {name: dense_weight(module).shape for name, module in targets.items()}
    first = config.sparsity if config.ramp_until is None else config.ramp_from
    fan_ins = fan_in_per_layer({n: (s[0], s[1]) for n, s in shapes.items()}, first, config.distribution)
    if isinstance(model, PreTrainedModel) and model.name_or_path:
        _warn_of_lost_weights(type(model).__name__, model.name_or_path, config)
    places = places_of(model)
    for name, module in logging.tqdm(targets.items(), desc="Condensing layers", disable=not progress):
        replace(places, module, first_layer(name, module, fan_ins[name], config, norms.get(name)))
    settle(model, config)
    return model


def _warn_of_lost_weights(kind: str, source: str, config: SRigLConfig) -> None:
    """A pretrained model is about to lose more than fine-tuning usually regains."""
    if config.init == "random":
        logger.warning_once(
            f"{kind} was loaded from {source}, but init='random' draws new weights for its target layers; to keep the "
            "pretrained ones use init='magnitude', or SRigLConfig.for_finetuning(...)."
        )
    elif config.sparsity >= MUCH and config.ramp_until is None:
        logger.warning_once(
            f"{kind} was loaded from {source} and is cut down to a sparsity of {config.sparsity:.0%} at once, of "
            "which training regains only a part: SRigLConfig.for_finetuning(...) goes there on a ramp and loses less."
        )


def densify(model: nn.Module, *, progress: bool = False) -> nn.Module:
    """The inverse of `sparsify`, in place: every `CondensedLinear` becomes an `nn.Linear` or `Conv1D` with zeros.

    The result is a plain model again; saved, it loads anywhere without `hf_srigl`.

    Args:
        progress: show a bar, one tick for each layer (unless transformers' bars are disabled).

    Raises:
        ValueError: the model has no condensed layer.

    Example:
        >>> model = sparsify(nn.Sequential(nn.Linear(20, 30)), SRigLConfig(sparsity=0.9))
        >>> densify(model)
        Sequential(
          (0): Linear(in_features=20, out_features=30, bias=True)
        )
        >>> int((model[0].weight != 0).sum())
        60
    """
    layers = condensed_layers(model)
    if not layers:
        raise ValueError("the model has no condensed layer: nothing to densify")
    if "" in layers:
        raise ValueError("the model is itself the condensed layer: put it into a module, or use its to_dense()")
    places = places_of(model)
    for layer in logging.tqdm(layers.values(), desc="Expanding layers", disable=not progress):
        replace(places, layer, expand(layer))
    detach(model)
    return model


def insert_empty(model: nn.Module, budgets: Mapping[str, int], config: SRigLConfig) -> None:
    """Replace layers by `CondensedLinear`s of the given budgets without values, to be filled by loading.

    Args:
        model: on the meta device or not; the new layers are on the same device and of the same dtype.
        budgets: layer name -> B.

    Raises:
        ValueError: a name is not a linear layer of this model, or a budget does not fit it.
    """
    places = places_of(model)
    for name, budget in budgets.items():
        module = model.get_submodule(name)
        if type(module) not in (nn.Linear, Conv1D):
            raise ValueError(
                f"layer {name}: the checkpoint holds a condensed layer, expected nn.Linear or Conv1D in the model, "
                f"found {type(module).__name__}"
            )
        try:
            layer = empty_layer(module, budget, config)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
        replace(places, module, layer)
    remember(model, config)
