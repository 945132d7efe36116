"""The file format inside transformers: `from_pretrained`, `save_pretrained`, `push_to_hub` know condensed layers.

transformers has one door for layers that are stored in a form of their own: quantizers. Importing this module registers
one named "srigl". `docs/format.md` describes the files.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from types import MethodType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import PrefixChange
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_srigl import install
from hf_srigl.config import SRigLConfig
from hf_srigl.files.card import write_card
from hf_srigl.files.saving import save_pretrained
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.model.attachment import FORMAT_VERSION, attach, condensed_layers, is_condensed_config
from hf_srigl.model.surgery import densify, insert_empty, sparsify

logger = logging.get_logger(__name__)

_TENSORS = ("weight", "indices", "active")


@register_quantization_config("srigl")
class SRigLQuantizationConfig(QuantizationConfigMixin):
    """``quantization_config`` of a condensed model's ``config.json``: the SRigLConfig fields, the budgets, the version.

    Attributes:
        srigl: the `SRigLConfig`. layers: layer name -> budget B. format_version: 1.
        part: in the configuration of a part (CLIP's ``vision_config``), the name of its module in the whole model.

    Raises:
        ValueError: a newer format version, unknown or bad fields, or budgets that are not positive whole numbers.
    """

    def __init__(
        self,
        *,
        layers: Mapping[str, int],
        format_version: int,
        quant_method: str = "srigl",
        part: str = "",
        **srigl: Any,
    ) -> None:
        if format_version != FORMAT_VERSION:
            raise ValueError(
                f"this condensed model has format_version {format_version!r}, this hf_srigl reads version "
                f"{FORMAT_VERSION}; upgrade it: {install.how()}"
            )
        if not isinstance(layers, Mapping):
            raise ValueError(
                f"layers: expected layer names and their budgets, found {type(layers).__name__} {layers!r}"
            )
        for name, budget in layers.items():
            if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
                raise ValueError(f"layer {name}: expected a positive whole number as budget, found {budget!r}")
        self.quant_method = quant_method
        self.format_version = format_version
        self.layers = dict(layers)
        self.part = part
        self.srigl = SRigLConfig.from_dict(srigl)

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> SRigLQuantizationConfig | tuple[SRigLQuantizationConfig, dict[str, Any]]:
        for field in ("layers", "format_version"):
            if field not in config_dict:
                raise ValueError(
                    f"the quantization_config (in config.json) of a condensed model must have {field!r}, found only "
                    f"{sorted(config_dict)}; to sparsify a dense model while loading pass quantization_config=SRigLConfig(...)"
                )
        try:
            config = cls(**config_dict)
        except ValueError as error:
            raise ValueError(f"quantization_config in config.json: {error}") from error
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        head = {"quant_method": "srigl", "format_version": self.format_version, "layers": dict(self.layers)}
        part = {"part": self.part} if self.part else {}
        return {**head, **part, **self.srigl.to_dict()}


@register_quantizer("srigl")
class SRigLQuantizer(HfQuantizer):
    """Builds condensed layers before transformers loads their tensors, or condenses a dense model after loading."""

    def __init__(self, quantization_config: SRigLQuantizationConfig | SRigLConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.quantization_config: SRigLQuantizationConfig | SRigLConfig = quantization_config

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return True

    def watch_saves_of(self, model: PreTrainedModel) -> None:
        """Let every upload of this model carry `card_section` in its README.md, and no save leave older weights that win.

        transformers offers no hook between writing a model card and uploading it, nor after writing weights, so the methods
        that save and upload are wrapped, for this one object.
        """
        model.save_pretrained = MethodType(save_pretrained, model)
        model._upload_modified_files = MethodType(_upload_modified_files, model)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        # Condensed checkpoints carry the module's own names; conversions are for dense matrices under older names.
        # What takes the name of a part off, for loading the part alone, only concerns names.
        if not self.pre_quantized:
            return weight_conversions
        return [change for change in weight_conversions if isinstance(change, PrefixChange) and change.prefix_to_remove]

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        config = self.quantization_config
        if not isinstance(config, SRigLQuantizationConfig):
            return
        names = {stored: find_layer(model, stored) for stored in config.layers}
        present = {stored: name for stored, name in names.items() if name is not None}
        if config.layers and not present:
            raise ValueError(
                f"{type(model).__name__} has none of the checkpoint's condensed layers (first: {next(iter(config.layers))}); "
                "load it with the class, or an auto class, of the architecture it was saved from"
            )
        insert_empty(model, {name: config.layers[stored] for stored, name in present.items()}, config.srigl)
        files = [str(file) for file in checkpoint_files or []]
        unchecked = [file for file in files or ["state_dict"] if not file.endswith(".safetensors")]
        if unchecked:  # transformers would leave what is missing there uninitialised, and what is wrong unnoticed
            raise ValueError(
                f"{unchecked[0]}: condensed models are loaded from safetensors files only; write them with save_pretrained, "
                "or load_state_dict into a condensed model"
            )
        layers = {stored: model.get_submodule(name) for stored, name in present.items()}
        check_files(
            files,
            {stored: layer for stored, layer in layers.items() if isinstance(layer, CondensedLinear)},
            config.part or model.base_model_prefix,
        )

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        config = self.quantization_config
        if isinstance(config, SRigLConfig):  # the checkpoint was dense
            # postprocess_model has put the plain SRigLConfig into the model's config; sparsify replaces it
            return sparsify(model, config)
        for name, layer in condensed_layers(model).items():
            if not layer.indices.is_meta:
                problem = layer.problem_with(layer.weight, layer.indices, layer.active)
                if problem is not None:
                    raise ValueError(f"layer {name}: {problem}")
        attach(model, config.srigl)
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        densify(model)
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype  # saving leaves a string in model.config
        return model if dtype is None else model.to(dtype)


def find_layer(model: PreTrainedModel, stored: str) -> str | None:
    """The name in `model` of a layer stored under `stored`, with or without the base model's prefix; None if absent.

    A checkpoint of a model with a head says ``bert.encoder...``; the bare model has no prefix, and the other way round.
    """
    for name in spellings(stored, model.base_model_prefix):
        try:
            model.get_submodule(name)
        except AttributeError:
            continue
        return name
    return None


def spellings(name: str, prefix: str) -> tuple[str, str, str]:
    """A layer's name as it is, without and with the base model's prefix."""
    return name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"


def check_files(files: list[str], layers: Mapping[str, CondensedLinear], prefix: str = "") -> None:
    """Read and validate what kernels would trust, before transformers loads anything.

    Args:
        files: safetensors files. layers: name in config.json -> the layer to be filled (only its sizes matter).
        prefix: of the base model; the files of a base model saved out of a model with a head lack it, the config has it.

    Raises:
        ValueError: naming file, layer and tensor, what was expected and what was found.
    """
    where: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as reader:
                where.update(dict.fromkeys(reader.keys(), str(file)))
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file ({error}); download or save it again") from error
    for name, layer in layers.items():
        tensors: dict[str, torch.Tensor | None] = {}
        seen = []
        for tensor_name in _TENSORS:
            keys = [f"{spelling}.{tensor_name}" for spelling in spellings(name, prefix)]
            key = next((key for key in keys if key in where), keys[0])
            tensors[tensor_name] = None
            if key in where:
                seen.append(where[key])
                with safe_open(where[key], framework="pt") as reader:
                    tensors[tensor_name] = reader.get_tensor(key)
        problem = layer.problem_with(*(tensors[t] for t in _TENSORS))
        if problem is not None:
            file = ", ".join(dict.fromkeys(seen)) or ", ".join(map(str, files))
            weight = tensors["weight"]
            if weight is not None and weight.ndim == 2:
                raise ValueError(
                    f"{file}: layer {name}: tensor weight: expected {layer.budget} condensed values, as config.json says, "
                    f"found a dense {tuple(weight.shape)} matrix; delete quantization_config from config.json to load it"
                )
            raise ValueError(
                f"{file}: layer {name}: {problem}; the file is damaged or of another model: fetch it again"
            )


def _upload_modified_files(
    self: PreTrainedModel, working_dir: str | PathLike[str], repo_id: str, *args: Any, **kwargs: Any
) -> Any:
    card = os.path.join(working_dir, "README.md")
    if os.path.isfile(card):
        write_card(self, card, repo_id)
    with explained_failure(repo_id, "push_to_hub again"):
        return type(self)._upload_modified_files(self, working_dir, repo_id, *args, **kwargs)


@contextmanager
def explained_failure(repo_id: str | None, way_out: str) -> Iterator[None]:
    """Log what a failed upload leaves behind, and let the error pass.

    The Hub takes one commit for all files: it fails as a whole, and large files that were sent already are not sent twice.
    """
    try:
        yield
    except Exception as error:
        logger.error(
            f"Uploading to {repo_id} failed ({type(error).__name__}): no commit was made, so the repository is as it was; the "
            f"model and the files here are intact: {way_out}, which sends only what is missing."
        )
        raise


def _refuse_dense_twins() -> None:
    """Let no model be built, dense and with random weights, from the configuration of a condensed one.

    `AutoModel.from_config` and constructors know nothing of quantizers. transformers has no hook there, so the constructor
    that all models share is wrapped, once. On the meta device, where `from_pretrained` builds models, nothing is refused.
    """
    original = PreTrainedModel.__init__

    @functools.wraps(original)
    def checked(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        if is_condensed_config(config) and torch.get_default_device().type != "meta":
            raise ValueError(
                f"{type(self).__name__}: this {type(config).__name__} is of a condensed model, from which only "
                "from_pretrained can build one; for a new model of the same sizes: del config.quantization_config, build it, "
                "and sparsify(model, SRigLConfig(init='random', ...))"
            )
        original(self, config, *args, **kwargs)

    PreTrainedModel.__init__ = checked


_refuse_dense_twins()
