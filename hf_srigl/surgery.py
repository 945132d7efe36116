"""Dense model <-> condensed model, in place: `sparsify`, `densify`, and the empty layers that loading fills."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import logging

from hf_srigl import topology
from hf_srigl.calibration import input_norms
from hf_srigl.config import SRigLConfig
from hf_srigl.distribution import fan_in_per_layer
from hf_srigl.linear import CondensedLinear
from hf_srigl.ramp import final_budgets
from hf_srigl.targets import condensed_parts, find_targets
from hf_srigl.unstructured import UnstructuredLinear

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1


def sparsify(model: nn.Module, config: SRigLConfig, *, calibration: Iterable[Any] | None = None) -> nn.Module:
    """Make the target layers of `model` condensed, in place, and return the model.

    A Hugging Face model also learns how to save and load its condensed form: `save_pretrained`, `from_pretrained`,
    `Trainer` checkpoints and `push_to_hub` work as before. Call it on the model that you will save, not on a part of it:
    to sparsify a part, use `target_modules`. Create the optimizer after this call.

    Args:
        model: any module; which layers are targets is told by `hf_srigl.targets.find_targets`.
        config: sparsity, distribution, targets and start (`init`); the rest is for training.
        calibration: for ``init="wanda"``: batches (a DataLoader, say) to run the model on, 128 examples are enough; each
            a dict, list, tuple or tensor (`hf_srigl.calibration.input_norms`).

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
    if not isinstance(config, SRigLConfig):
        raise TypeError(f"config must be an SRigLConfig, got {type(config).__name__}: SRigLConfig(**options)")
    already = list(condensed_layers(model))
    if already:
        raise ValueError(
            f"the model is condensed already ({len(already)} layers, first {already[0]}); "
            "train it as it is, or densify() it before sparsifying anew"
        )
    targets = find_targets(model, config)
    shapes = {name: _dense_weight(module).shape for name, module in targets.items()}
    start = config.sparsity if config.ramp_until is None else config.ramp_from
    fan_ins = fan_in_per_layer({n: (s[0], s[1]) for n, s in shapes.items()}, start, config.distribution)
    for name, module in targets.items():
        if not module.weight.is_floating_point():
            raise ValueError(f"layer {name}: expected floating point weights, found {module.weight.dtype} (quantized?)")
        if config.init != "random" and not bool(torch.isfinite(module.weight).all()):
            raise ValueError(f"layer {name}: expected finite weights, found NaN or inf; load a sound checkpoint")
    if config.init == "random" and isinstance(model, PreTrainedModel) and model.name_or_path:
        logger.warning_once(
            f"{type(model).__name__} was loaded from {model.name_or_path}, but init='random' draws new weights for its target "
            "layers; to keep the pretrained ones use init='magnitude', or SRigLConfig.for_finetuning(...)."
        )
    norms = _norms(model, targets, config, calibration)
    for name, module in targets.items():
        _replace(model, module, _condense(name, module, fan_ins[name], config, norms.get(name)))
    for part in _outermost_pretrained(model):
        _give_own_config(part)
    attach(model, config)
    return model


def _norms(
    model: nn.Module, targets: Mapping[str, nn.Module], config: SRigLConfig, calibration: Iterable[Any] | None
) -> dict[str, torch.Tensor]:
    if config.init == "wanda" and calibration is None:
        raise ValueError(
            "init='wanda' needs data: sparsify(model, config, calibration=dataloader); SparseTrainer takes it from its "
            "train_dataset. While loading (from_pretrained) there is none: load the model dense first"
        )
    if config.init != "wanda" and calibration is not None:
        raise ValueError(f"calibration data is for init='wanda' only, got init={config.init!r}")
    return {} if calibration is None else input_norms(model, targets, calibration)


def densify(model: nn.Module) -> nn.Module:
    """The inverse of `sparsify`, in place: every `CondensedLinear` becomes an `nn.Linear` or `Conv1D` with zeros.

    The result is a plain model again; saved, it loads anywhere without `hf_srigl`.

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
    for layer in layers.values():
        _replace(model, layer, _expand(layer))
    _detach(model)
    return model


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


def insert_empty(model: nn.Module, budgets: Mapping[str, int], config: SRigLConfig) -> None:
    """Replace layers by `CondensedLinear`s of the given budgets without values, to be filled by loading.

    Args:
        model: on the meta device or not; the new layers are on the same device and of the same dtype.
        budgets: layer name -> B.

    Raises:
        ValueError: a name is not a linear layer of this model, or a budget does not fit it.
    """
    for name, budget in budgets.items():
        module = model.get_submodule(name)
        if type(module) not in (nn.Linear, Conv1D):
            raise ValueError(
                f"layer {name}: the checkpoint holds a condensed layer, expected nn.Linear or Conv1D in the model, "
                f"found {type(module).__name__}"
            )
        weight = _dense_weight(module)
        n_out, n_in = weight.shape
        try:
            layer = _kind(config)(
                n_in,
                n_out,
                budget,
                module.bias is not None,
                transposed=isinstance(module, Conv1D),
                device=weight.device,
                dtype=weight.dtype,
            )
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
        _replace(model, module, layer)
    _remember(model, config)


def attach(model: nn.Module, config: SRigLConfig) -> None:
    """Let the model carry its configuration and, where it is or holds a `PreTrainedModel`, the way to save and load it.

    Attaching the quantizer here and not when saving matters: the Trainer's own checkpoints then load through AutoModel.
    """
    _remember(model, config)
    for part in _outermost_pretrained(model):
        _attach_format(part, config)


def is_on_ramp(model: nn.Module) -> bool:
    """Whether some layer is still denser than the sparsity that was asked for, so that training has to go on."""
    return any(layer.budget > layer.smallest_budget for layer in condensed_layers(model).values())


def refresh_budgets(model: nn.Module) -> None:
    """Let the configuration that will be saved know the layers' budgets after a change."""
    for part in _outermost_pretrained(model):
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
    model.add_model_tags(["srigl", "sparse"])
    quantizer.write_cards_of(model)


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


def _give_own_config(model: PreTrainedModel) -> None:
    """Copy the model's config, which other models may share: the sparse one is about to say so in its own."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        shared = module.__dict__.get("config")
        if shared is not None and id(shared) in copies:
            module.__dict__["config"] = copies[id(shared)]


def _remember(model: nn.Module, config: SRigLConfig) -> None:
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


def _detach(model: nn.Module) -> None:
    for module in model.modules():
        for attribute in ("srigl_config", "srigl_speed", "_ddp_params_and_buffers_to_ignore", "_upload_modified_files"):
            module.__dict__.pop(attribute, None)
        if not isinstance(module, PreTrainedModel):
            continue
        module.__dict__.pop("_weight_conversions", None)
        if getattr(getattr(module.config, "quantization_config", None), "quant_method", None) == "srigl":
            del module.config.quantization_config  # T5's stacks have copies of the configuration
        if "hf_quantizer" in module.__dict__:
            module.hf_quantizer.remove_quantization_config(module)
            module.model_tags = [tag for tag in module.model_tags or [] if tag not in ("srigl", "sparse")] or None


def _dense_weight(module: nn.Linear | Conv1D) -> torch.Tensor:
    """(N, K), a view of the module's parameter; Conv1D stores (K, N)."""
    weight = module.weight.detach()
    return weight.t() if isinstance(module, Conv1D) else weight


def _condense(
    name: str, module: nn.Linear | Conv1D, fan_in: int, config: SRigLConfig, norms: torch.Tensor | None
) -> CondensedLinear:
    weight = _dense_weight(module)
    n_out, n_in = weight.shape
    kind, rows, count = _kind(config), (n_out, n_in), fan_in
    if kind is UnstructuredLinear:  # one choice for the whole layer instead of one for each row
        rows, count = (1, n_out * n_in), n_out * fan_in
    if config.init == "magnitude":
        mask = topology.magnitude_mask(weight.reshape(rows), count)
    elif norms is not None:
        mask = topology.magnitude_mask((weight.float() * norms).reshape(rows), count)
    else:
        generator = generator_for(config.seed, "init", name)
        mask = topology.random_mask(rows, count, generator).to(weight.device)
        fresh = torch.randn(n_out, n_in, generator=generator) / math.sqrt(fan_in)  # activations keep their variance
        weight = fresh.to(weight.device, weight.dtype)
    bias = None if module.bias is None else module.bias.detach()
    mask = mask.view(n_out, n_in)
    layer = kind.from_dense(weight, mask, bias, budget=n_out * fan_in, transposed=isinstance(module, Conv1D))
    layer.weight.requires_grad_(module.weight.requires_grad)
    layer.bias = module.bias  # the same object: it may be tied
    return layer.train(module.training)


def _kind(config: SRigLConfig) -> type[CondensedLinear]:
    return CondensedLinear if config.structure == "constant_fan_in" else UnstructuredLinear


def _expand(layer: CondensedLinear) -> nn.Linear | Conv1D:
    dense = layer.to_dense()
    with torch.device("meta"):  # allocates nothing and draws no random numbers
        module: nn.Linear | Conv1D
        if layer.transposed:
            module = Conv1D(layer.out_features, layer.in_features)
        else:
            module = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    dense = dense.t().contiguous() if layer.transposed else dense.clone()
    module.weight = nn.Parameter(dense, requires_grad=layer.weight.requires_grad)
    module.bias = layer.bias
    return module.train(layer.training)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands; a shared module stays shared."""
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[child_name] = new


def generator_for(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator that depends only on its arguments, so that neither order nor resuming changes what it draws.

    Example:
        >>> torch.rand(1, generator=generator_for(0, "grow", 5)) == torch.rand(1, generator=generator_for(0, "grow", 5))
        tensor([True])
    """
    digest = hashlib.blake2b("/".join(map(str, (seed, *parts))).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
