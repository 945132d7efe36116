"""What a condensed model carries beside its layers: its configuration, and what transformers needs to save and load it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_srigl.config import SRigLConfig
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.model.ramp import final_budgets

FORMAT_VERSION = 1
_ATTACHED = (
    "srigl_config",
    "srigl_speed",
    "_ddp_params_and_buffers_to_ignore",
    "_upload_modified_files",
    "save_pretrained",
)
TAGS = ("srigl", "sparse")  # of every condensed model, and of its card


def condensed_layers(model: nn.Module) -> dict[str, CondensedLinear]:
    """name -> layer, in model order; a layer used in several places appears once.

    Example:
        >>> list(condensed_layers(sparsify(nn.Sequential(nn.Linear(8, 8)), SRigLConfig(sparsity=0.5))))
        ['0']
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, CondensedLinear)}


def config_of(model: nn.Module) -> SRigLConfig | None:
    """The configuration a condensed model carries (wrappers such as DDP are looked through); None if it has none.

    Example:
        >>> config_of(sparsify(nn.Sequential(nn.Linear(8, 8)), SRigLConfig(sparsity=0.5))).sparsity
        0.5
    """
    for module in model.modules():
        config = module.__dict__.get("srigl_config")
        if isinstance(config, SRigLConfig):
            return config
    return None


def is_condensed_config(config: PreTrainedConfig) -> bool:
    """Whether a model's configuration says that its checkpoint is condensed."""
    found = getattr(config, "quantization_config", None)
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return method == "srigl"


def attach(model: nn.Module, config: SRigLConfig) -> None:
    """Let the model carry its configuration and, where it is or holds a `PreTrainedModel`, the way to save and load it.

    Attaching the quantizer here and not when saving matters: the Trainer's own checkpoints then load through AutoModel.
    """
    for part in _outermost_pretrained(model):
        _attach_format(part, config)
    remember(model, config)


def is_on_ramp(model: nn.Module) -> bool:
    """Whether some layer is still denser than the sparsity that was asked for, so that training has to go on."""
    return any(layer.budget > layer.smallest_budget for layer in condensed_layers(model).values())


def refresh_budgets(model: nn.Module) -> None:
    """Let the configuration that will be saved know the layers' budgets after a change.

    Raises:
        ValueError: a model with condensed layers carries no configuration, since only a part of it was given to `sparsify`.
    """
    for part in _outermost_pretrained(model):
        if not isinstance(getattr(part.config, "quantization_config", None), QuantizationConfigMixin):
            raise ValueError(
                f"{type(part).__name__} has condensed layers but does not know it: only a part of it was sparsified. Call "
                "sparsify on the model that is trained and saved, and choose the part with target_modules"
            )
        for module in (part, *condensed_parts(part).values()):
            module.config.quantization_config.layers = _budgets(module)


def _budgets(model: nn.Module) -> dict[str, int]:
    return {name: layer.budget for name, layer in condensed_layers(model).items()}


def _attach_format(model: PreTrainedModel, config: SRigLConfig) -> None:
    quantizer = _quantizer(model, config)
    for name, part in condensed_parts(model).items():
        part.config.quantization_config = _quantizer(part, config, part=name).quantization_config
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config
    model.is_quantized = True
    model.quantization_method = "srigl"
    # Checkpoints are written under the module's own names: transformers' conversions would rename or merge tensors
    # that are no longer matrices, and the Trainer reads them back without converting.
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and condensed_layers(module):  # a base model may be saved by itself
            module._weight_conversions = []
    if _refresh_after_loading not in model._load_state_dict_post_hooks.values():
        model.register_load_state_dict_post_hook(_refresh_after_loading)
    model.add_model_tags(list(TAGS))
    quantizer.watch_saves_of(model)


def _refresh_after_loading(model: nn.Module, incompatible_keys: Any) -> None:
    """A state further down a ramp has made layers smaller."""
    refresh_budgets(model)


def _quantizer(model: nn.Module, config: SRigLConfig, **part: str) -> Any:
    head = {"quant_method": "srigl", "format_version": FORMAT_VERSION, "layers": _budgets(model)}
    return AutoHfQuantizer.from_config({**head, **part, **config.to_dict()}, pre_quantized=True)


def _outermost_pretrained(model: nn.Module) -> list[PreTrainedModel]:
    """The `PreTrainedModel`s with condensed layers that are in no other one: the model itself, or what a wrapper holds."""
    found: list[tuple[str, PreTrainedModel]] = []
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, PreTrainedModel) and not inside and condensed_layers(module):
            found.append((name, module))
    return [module for _, module in found]


def condensed_parts(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """name -> condensed models directly inside `model` whose configuration lies inside its own.

    These are parts that transformers can load alone, as CLIP's towers.
    """
    inner = [getattr(model.config, key, None) for key in type(model.config).sub_configs]
    return {
        name: child
        for name, child in model.named_children()
        if isinstance(child, PreTrainedModel)
        and any(child.config is config for config in inner)
        and condensed_layers(child)
    }


def _give_own_config(model: PreTrainedModel) -> None:
    """Copy the model's config, which other models may share: the sparse one is about to say so in its own."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        shared = module.__dict__.get("config")
        if shared is not None and id(shared) in copies:
            module.__dict__["config"] = copies[id(shared)]


def remember(model: nn.Module, config: SRigLConfig) -> None:
    """Let `model` carry its configuration and its layers know how far a ramp may take them."""
    model.__dict__["srigl_config"] = config
    layers = condensed_layers(model)
    for name, budget in final_budgets(layers, config).items():
        layers[name].smallest_budget = budget
    hide_topology_from_ddp(model)


def hide_topology_from_ddp(model: nn.Module) -> None:
    """Tell DistributedDataParallel, about to wrap `model`, to leave the topology buffers alone; `SRigL` synchronises them.

    It would broadcast them at every forward pass, and neither gloo nor NCCL knows int16. `sparsify` and the Trainers call
    this; call it yourself on a module of your own that holds a sparse model, before wrapping that in DDP.

    Example:
        >>> outer = nn.Sequential(sparsify(nn.Sequential(nn.Linear(8, 8)), SRigLConfig()))
        >>> hide_topology_from_ddp(outer); outer._ddp_params_and_buffers_to_ignore
        ['0.0.indices', '0.0.active']
    """
    ignored = [f"{name}.{buffer}" for name in condensed_layers(model) for buffer in ("indices", "active")]
    model.__dict__["_ddp_params_and_buffers_to_ignore"] = ignored


def detach(model: nn.Module) -> None:
    """Undo `attach`: nothing says any more that the model was condensed."""
    for module in model.modules():
        for attribute in _ATTACHED:
            module.__dict__.pop(attribute, None)
        if not isinstance(module, PreTrainedModel):
            continue
        module.__dict__.pop("_weight_conversions", None)
        if is_condensed_config(module.config):
            del module.config.quantization_config  # T5's stacks have copies of the configuration
        hooks = module._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _refresh_after_loading]:
            del hooks[key]
        if "hf_quantizer" in module.__dict__:
            module.hf_quantizer.remove_quantization_config(module)
            module.model_tags = [tag for tag in module.model_tags or [] if tag not in TAGS] or None


def settle(model: nn.Module, config: SRigLConfig) -> None:
    """What a model needs after its layers were replaced."""
    for part in _outermost_pretrained(model):
        _give_own_config(part)
    attach(model, config)
