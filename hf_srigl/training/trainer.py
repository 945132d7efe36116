"""SRigLTrainerMixin and SparseTrainer: the Hugging Face Trainer, training condensed models."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging

from hf_srigl.config import SRigLConfig
from hf_srigl.files.card import PICTURE, is_edited, write_card
from hf_srigl.files.quantizer import explained_failure
from hf_srigl.model.attachment import attach, condensed_layers, config_of, hide_topology_from_ddp, is_on_ramp
from hf_srigl.model.surgery import sparsify
from hf_srigl.plots import plot_topology
from hf_srigl.rule.draws import generator_for
from hf_srigl.rule.updates import UpdateReport
from hf_srigl.training.callback import SRigLCallback, check_arguments
from hf_srigl.training.checkpoints import discard_older, written_whole
from hf_srigl.training.distillation import Distillation, check_gives_hidden_states, check_weights

CALIBRATION_EXAMPLES = 128  # as many as the Wanda paper takes

logger = logging.get_logger(__name__)

# What a condensed model cannot change any more; every other option may differ in a later training.
_FIXED = (
    "sparsity",
    "distribution",
    "target_modules",
    "exclude_modules",
    "init",
    "ramp_until",
    "ramp_from",
    "structure",
)

if TYPE_CHECKING:  # the mixin's `super()` is whatever Trainer it is mixed into
    from transformers import Trainer as _TrainerMethods
else:
    _TrainerMethods = object


class SRigLTrainerMixin(_TrainerMethods):
    """Makes any Trainer train condensed: ``class SparseSFT(SRigLTrainerMixin, SFTTrainer): ...``.

    Takes the Trainer's arguments and these:

    Args:
        srigl_config: how to sparsify a dense model. A model that is condensed already trains on with the configuration
            it carries; a `srigl_config` given then may change the training options (`update_every`, `gamma_sal`, ...),
            but not what is fixed (`sparsity`, `distribution`, targets, `init`, `structure`, the ramp).
        srigl_pictures: at the end of training write pictures of the topology, and its history, into ``args.output_dir``
            (`hf_srigl.training.history.leave_pictures`); where matplotlib is not installed a log line says so.
        teacher: a dense model with the same labels or vocabulary, to learn from beside the labels; never trained or
            saved. It takes the same inputs.
        distillation_temperature: T > 0 of `hf_srigl.training.distillation.distillation_loss`.
        distillation_weight: in (0, 1], the share of the distillation loss; the rest is the Trainer's own loss.
        distillation_hidden_weight: at least 0, what `hf_srigl.training.distillation.hidden_state_loss` counts besides;
            a teacher of the same architecture can teach its hidden states. 0: only its logits.

    The model is sparsified when the Trainer is built (with `model_init`, every time it is called), before the optimizer
    exists; topology updates run through `SRigLCallback`, their numbers go to the Trainer's log. Checkpoints appear whole
    or not at all (`hf_srigl.training.checkpoints`), so that a killed run resumes from the last ``checkpoint-N`` there is.

    Raises:
        ValueError: a dense model without `srigl_config`, a configuration that contradicts a condensed model, an
            optimizer passed in for a model that is still dense, arguments that cannot train a condensed model, or a
            teacher that is the model itself.
    """

    def __init__(
        self,
        *args: Any,
        srigl_config: SRigLConfig | None = None,
        srigl_pictures: bool = True,
        teacher: nn.Module | None = None,
        distillation_temperature: float = 2.0,
        distillation_weight: float = 0.5,
        distillation_hidden_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if srigl_config is not None and not isinstance(srigl_config, SRigLConfig):
            raise TypeError(f"srigl_config must be an SRigLConfig, got {type(srigl_config).__name__}")
        self._srigl_config = srigl_config
        self._has_data = False  # model_init is called before the Trainer knows its data
        self._staging: str | None = None  # the folder of the checkpoint being written
        super().__init__(*args, **kwargs)
        self._has_data = True
        check_arguments(self.args)
        if not condensed_layers(self.model) and self.optimizer is not None:
            raise ValueError(
                "the optimizer passed in holds the parameters of the dense model: call sparsify(model, srigl_config) "
                "first and build the optimizer from the result, or let the Trainer create it"
            )
        if teacher is self.model:
            raise ValueError("the teacher is the model that becomes sparse: pass a copy, copy.deepcopy(model)")
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval()
        check_weights(distillation_temperature, distillation_weight, distillation_hidden_weight)
        if distillation_hidden_weight:
            if teacher is None:
                raise ValueError("distillation_hidden_weight needs a teacher: pass one, or leave it at 0")
            check_gives_hidden_states(self.model)
        self._distillation = None
        if self.teacher is not None:
            self._distillation = Distillation(
                teacher=self.teacher,
                temperature=distillation_temperature,
                weight=distillation_weight,
                hidden_weight=distillation_hidden_weight,
                encoder_decoder=isinstance(self.model, PreTrainedModel) and bool(self.model.config.is_encoder_decoder),
            )
        self._make_sparse(self.model)
        hide_topology_from_ddp(self.model)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, SRigLCallback):
                raise ValueError("this Trainer adds SRigLCallback by itself: leave it out of callbacks")
        self._srigl_callback = SRigLCallback(log=self.log, pictures=srigl_pictures)
        self._srigl_callback.trainer_saves = True
        self.add_callback(self._srigl_callback)

    @property
    def topology_reports(self) -> list[UpdateReport]:
        """What every topology update of the last training did, in order; empty before the first one.

        A resumed training also has the reports from before, as far as its checkpoint holds them (`srigl_history.json`; it is
        not there in checkpoints of older versions or with ``save_only_model``).
        """
        return list(self._srigl_callback.reports)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """The Trainer's, sparsified."""
        model = super().call_model_init(trial)
        needs_data = self._srigl_config is not None and self._srigl_config.init == "wanda"
        return model if needs_data and not self._has_data else self._make_sparse(model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The Trainer's, in training with a teacher mixed with what `Distillation` finds."""
        distillation = self._distillation
        if distillation is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = distillation.inputs(inputs)
        expected = distillation.answer(inputs)
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        distilled = distillation.loss(inputs, outputs, expected)
        scaled = self.loss_is_scaled_for_ga
        if scaled is None:  # the Trainer's own conclusion
            scaled = (
                self.model_accepts_loss_kwargs and num_items_in_batch is not None
            ) or self.compute_loss_func is not None
        if scaled:  # the Trainer will not divide any more
            distilled = distilled / self.current_gradient_accumulation_steps
        loss = (1 - distillation.weight) * loss + distilled
        return (loss, outputs) if return_outputs else loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's draft, and how to load a condensed model, its sizes and layers, and the picture of its topology.

        A card that somebody wrote or changed, here or on the Hub, is kept; only its section on sparsity is renewed.
        """
        if not self.is_world_process_zero():
            return
        path = os.path.join(self.args.output_dir, "README.md")
        kept = self._edited_card(path)
        os.makedirs(self.args.output_dir, exist_ok=True)
        super().create_model_card(*args, **kwargs)
        if kept is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(kept)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        reports = self._srigl_callback.reports
        if reports and find_spec("matplotlib") is not None:
            picture = os.path.join(self.args.output_dir, PICTURE)
            plot_topology(reports, picture, total_steps=self.state.max_steps)
        write_card(model, path, self.hub_model_id or self.args.output_dir, draft=kept is None)

    def _edited_card(self, path: str) -> str | None:
        """The text of a card that must not be drafted anew: the one here if it was edited, else the Hub's if that was."""
        card = _read(path) if os.path.isfile(path) else None
        if self.hub_model_id is not None and (card is None or not is_edited(card)):
            with suppress(EntryNotFoundError):  # a new repository
                card = _read(hf_hub_download(self.hub_model_id, "README.md", token=self.args.hub_token))
        return card if card is not None and is_edited(card) else None

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; a failure leaves training and files as they are, and says so."""
        with explained_failure(self.hub_model_id or self.args.hub_model_id, "call trainer.push_to_hub() again"):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is not None:  # it would upload from a folder that is about to be renamed
            return
        self._tell_failed_uploads()
        if self.args.hub_strategy != HubStrategy.END:  # the first upload must say already how to load the model
            try:
                self.create_model_card(tags=list(getattr(self.model, "model_tags", None) or []))
            except HfHubHTTPError as error:  # no reason to stop training
                logger.warning(
                    f"The model card was not renewed: {self.hub_model_id} could not be asked for it ({error})."
                )
        super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._tell_failed_uploads()

    def _tell_failed_uploads(self) -> None:
        """Uploads during training run in threads, whose errors the Trainer never asks for."""
        push = getattr(self, "push_in_progress", None)
        if push is None:
            return
        for job in [job for job in push.jobs if job.done()]:
            push.jobs.remove(job)
            if not job.cancelled() and job.exception() is not None:
                logger.warning(
                    f"An upload to {self.hub_model_id} during training failed ({job.exception()}). Training went on; the "
                    f"checkpoint is in {self.args.output_dir}, and the next upload, or trainer.push_to_hub(), sends it."
                )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's; a run that is resumed after its last step takes none, where the Trainer's own takes one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The Trainer's; a model that is still on its ramp is denser than what was asked for, and never the best."""
        if is_on_ramp(self.model):
            return False
        return super()._determine_best_metric(metrics, trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = self._get_output_dir(trial=trial)
        folder = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        try:
            with written_whole(folder) as self._staging:
                super()._save_checkpoint(model, trial)
                self._srigl_callback.save(self.args, self._staging)
                self._name_the_best(run_dir)
                if self.args.should_save:  # again, as the best checkpoint may be this one, under its later name
                    self.state.save_to_json(os.path.join(self._staging, TRAINER_STATE_NAME))
        finally:
            self._staging = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(folder)
        if self.args.should_save:
            discard_older(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _name_the_best(self, run_dir: str) -> None:
        step = self.state.best_global_step
        if step is not None:
            best = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
            if step == self.state.global_step or os.path.isdir(best):
                self.state.best_model_checkpoint = best

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else os.path.dirname(self._staging)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        self._srigl_callback.resume_from = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)  # sentence-transformers' takes no model

    def _make_sparse(self, model: nn.Module) -> nn.Module:
        given = self._srigl_config
        if not condensed_layers(model):
            if given is None:
                raise ValueError(
                    "the model is dense and there is no srigl_config: pass srigl_config=SRigLConfig(sparsity=...), or a "
                    "model made by sparsify() or loaded condensed"
                )
            return sparsify(model, given, calibration=self._calibration() if given.init == "wanda" else None)
        carried = config_of(model)
        if given is None or given == carried:
            return model
        for name in _FIXED if carried is not None else ():
            if getattr(given, name) != getattr(carried, name):
                raise ValueError(
                    f"the model is condensed already with {name}={getattr(carried, name)!r}, srigl_config says "
                    f"{getattr(given, name)!r}; densify() it first, or pass "
                    f"dataclasses.replace(hf_srigl.model.attachment.config_of(model), ...) with new training options only"
                )
        attach(model, given)
        return model

    def _calibration(self) -> Iterator[Any]:
        """Some batches of the training data, in an order of their own."""
        if self.train_dataset is None:
            raise ValueError("init='wanda' needs a train_dataset to calibrate on, got none")
        iterable = isinstance(self.train_dataset, IterableDataset)
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            shuffle=None if iterable else True,
            generator=generator_for(self._srigl_config.seed if self._srigl_config else 0, "calibration"),
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description="calibration"),
        )
        return itertools.islice(iter(loader), -(-CALIBRATION_EXAMPLES // self.args.train_batch_size))


class SparseTrainer(SRigLTrainerMixin, Trainer):
    """`transformers.Trainer` for condensed models: the same arguments plus `srigl_config` (see `SRigLTrainerMixin`).

    Example:
        >>> trainer = SparseTrainer(
        ...     model=dense_model, args=training_args, srigl_config=SRigLConfig(sparsity=0.75, update_every=2),
        ...     train_dataset=train_dataset,
        ... )
        >>> _ = trainer.train()
        >>> trainer.topology_reports[0].step
        2
        >>> trainer.save_model(tmp_path / "sparse")
        >>> type(trainer.model).from_pretrained(tmp_path / "sparse").is_quantized
        True
    """

    model: PreTrainedModel


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
