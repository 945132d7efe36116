"""SRigLCallback: topology updates inside any Hugging Face Trainer."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn, optim
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import is_peft_available, logging

from hf_srigl.model.attachment import hide_topology_from_ddp, is_on_ramp
from hf_srigl.model.report import sparsity_report
from hf_srigl.rule.updates import UpdateReport
from hf_srigl.training.history import HISTORY_FILE, History, leave_pictures
from hf_srigl.training.optimizers import refused_by_name
from hf_srigl.training.sharding import launched_with
from hf_srigl.training.srigl import SRigL

logger = logging.get_logger(__name__)

DEFAULT_LEARNING_RATE = TrainingArguments.learning_rate
STATE_FILE = "srigl_state.safetensors"


class SRigLCallback(TrainerCallback):
    """Gives the model of a stock `Trainer` its topology updates; `SparseTrainer` adds it by itself.

    The model must be condensed (`sparsify`, or loaded condensed). At every update the numbers of
    `UpdateReport.metrics` go to ``trainer.state.log_history``; with `SparseTrainer` they also reach TensorBoard and the
    other integrations, which a stock Trainer offers a callback no way to do.

    Args:
        log: called with the metrics at each update instead of writing to the log history (`SparseTrainer` passes
            ``trainer.log``).
        pictures: at the end of training write `hf_srigl.training.history.leave_pictures` into the output folder, if matplotlib
            is installed; a log line says so if it is not.

    Attributes:
        srigl: the `SRigL` of the training in progress, else None. history: of the last training, else None.

    Raises:
        ValueError: at the start of training, for what cannot train a condensed model: DeepSpeed, FSDP, DataParallel,
            optimizers whose state cannot move with a topology.

    Example:
        >>> from transformers import Trainer
        >>> trainer = Trainer(sparse_model, training_args, train_dataset=train_dataset, callbacks=[SRigLCallback()])
        >>> _ = trainer.train()
        >>> [row["srigl/sparsity"] for row in trainer.state.log_history if "srigl/sparsity" in row]
        [0.75, 0.75]
    """

    def __init__(self, log: Callable[[dict[str, float]], None] | None = None, *, pictures: bool = True) -> None:
        self.log, self.pictures = log, pictures
        self.srigl: SRigL | None = None
        self.history: History | None = None
        self.resume_from: str | None = None  # set by the trainer mixin; a stock Trainer does not tell
        self.trainer_saves = False  # set by the trainer mixin, which writes the state with the rest of a checkpoint
        self._unlogged: UpdateReport | None = None

    @property
    def reports(self) -> list[UpdateReport]:
        """The reports of all updates of the last training, also of those before it was resumed where a checkpoint has them."""
        return [] if self.history is None else self.history.reports

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        check_arguments(args)
        hide_topology_from_ddp(model)  # which may hold a sparse model, as PEFT's does

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        check_arguments(args)
        if self.log is None and args.load_best_model_at_end and is_on_ramp(model):
            raise ValueError(
                "load_best_model_at_end would pick a checkpoint from the ramp, where the model is denser and better: use "
                "SparseTrainer, which compares only models at the final sparsity, or leave out ramp_until"
            )
        if is_on_ramp(model) and is_peft_available() and isinstance(model, importlib.import_module("peft").PeftModel):
            raise ValueError(
                "a sparsity ramp changes the base model, and PEFT saves only the adapters: go down the ramp first, then add "
                "adapters; or leave out ramp_until"
            )
        if args.learning_rate == DEFAULT_LEARNING_RATE:
            logger.warning_once(
                f"The learning rate is the Trainer's default, {DEFAULT_LEARNING_RATE}. A sparse model wants up to three times "
                "the rate that is best for its dense twin; set TrainingArguments(learning_rate=...)."
            )
        self.srigl = SRigL(model, optimizer, total_steps=state.max_steps)
        report = sparsity_report(model)
        logger.info(f"{self.srigl}; {report.parameters:,} parameters, {report.dense_parameters:,} if dense")
        self.history, self._unlogged = History(report, state.global_step), None
        if state.global_step > 0:
            self._resume_history(args, state)
            self._resume(self.srigl, args, state)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.srigl is None or self.history is None:
            return
        report = self.srigl.step()
        if report is not None:
            self.history.reports.append(report)
            self._unlogged = report

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._unlogged is None:
            return
        metrics, self._unlogged = self._unlogged.metrics(), None
        if self.log is not None:
            should_log = control.should_log
            self.log(metrics)
            control.should_log = should_log  # logging clears it, and the Trainer's own entry is still to come
        else:
            epoch = {} if state.epoch is None else {"epoch": state.epoch}
            state.log_history.append({**metrics, **epoch, "step": state.global_step})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.trainer_saves:
            self.save(args, _checkpoint_folder(args, state))

    def save(self, args: TrainingArguments, folder: str) -> None:
        """Write the state of the training in progress into a checkpoint's folder, if this rank writes checkpoints."""
        if self.srigl is not None and args.should_save and not args.save_only_model and os.path.isdir(folder):
            save_state(self.srigl, os.path.join(folder, STATE_FILE))
            if self.history is not None:
                self.history.save(os.path.join(folder, HISTORY_FILE))

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A checkpoint is uploaded before on_save comes, and must be whole by then.
        self.on_save(args, state, control)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if self.srigl is None:
            return
        if model is not None and is_on_ramp(model):
            logger.warning(
                f"Training ended at step {state.global_step}, before the ramp (ramp_until={self.srigl.config.ramp_until} of "
                f"{state.max_steps} steps) reached the sparsity of {self.srigl.config.sparsity}: the model is denser. Resume "
                "it to the end, or densify() it and sparsify() it anew at that sparsity."
            )
        self.srigl.close()
        self.srigl = None
        if self.pictures and self.history is not None and model is not None and state.is_world_process_zero:
            self._leave_pictures(self.history, model, args, state)

    def _leave_pictures(self, history: History, model: nn.Module, args: TrainingArguments, state: TrainerState) -> None:
        """A picture is never worth a training: whatever goes wrong is told and left at that."""
        folder = str(args.output_dir)
        try:
            names = leave_pictures(history, sparsity_report(model), folder, state.global_step)
            logger.info(f"The topology of this training: {', '.join(names)} in {folder}")
        except Exception as error:
            logger.warning(
                f"There is no picture of the topology in {folder}: {error or type(error).__name__} (pictures=False turns "
                "pictures off)"
            )

    def _resume_history(self, args: TrainingArguments, state: TrainerState) -> None:
        for path in self._found_beside_checkpoint(HISTORY_FILE, args, state):
            try:
                self.history = History.load(path, until=state.global_step)
            except (OSError, ValueError) as error:
                logger.warning(f"The history of topology updates begins anew at step {state.global_step}: {error}")
            return

    def _found_beside_checkpoint(self, name: str, args: TrainingArguments, state: TrainerState) -> list[str]:
        folders = [self.resume_from, args.resume_from_checkpoint, _checkpoint_folder(args, state)]
        paths = [os.path.join(str(folder), name) for folder in folders if folder]
        return [path for path in paths if os.path.isfile(path)]

    def _resume(self, srigl: SRigL, args: TrainingArguments, state: TrainerState) -> None:
        for path in self._found_beside_checkpoint(STATE_FILE, args, state):
            if load_state(srigl, path, state.global_step):
                return
        srigl.resume_at(state.global_step)
        logger.warning_once(
            f"Resuming at step {state.global_step} without its {STATE_FILE}: the topology is that of the checkpoint, but "
            "the ITOP rate counts from here, and an update that was postponed by an overflow at that step is not retried."
        )


def check_arguments(args: TrainingArguments) -> None:
    """Refuse what would train a condensed model wrongly, before anything runs.

    Raises:
        ValueError: DeepSpeed, FSDP, several GPUs in one process, TRL's sync_ref_model, or an optimizer whose state cannot
            move.
    """
    if args.deepspeed or launched_with("DEEPSPEED"):
        raise ValueError(
            "DeepSpeed cannot train a condensed model: it runs the optimizer inside backward and hides gradients; launch "
            "with torchrun (DDP) instead, a condensed model's gradients and optimizer state are small already"
        )
    if args.fsdp or launched_with("FSDP"):
        raise ValueError(
            "FSDP cannot train a condensed model yet through the Trainer: launch with torchrun (DDP), or use SRigL and "
            "torch.distributed.fsdp.fully_shard in a loop of your own"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"expected one GPU for each process, found {args.n_gpu} in one (nn.DataParallel); launch with "
            "torchrun --nproc_per_node or accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU"
        )
    if getattr(args, "sync_ref_model", False):  # of TRL's preference trainers
        raise ValueError(
            "sync_ref_model averages the values of model and reference slot by slot, and after a topology update their slots "
            "belong to different connections: leave it out"
        )
    refusal = refused_by_name(str(getattr(args.optim, "value", args.optim)))
    if refusal is not None:
        raise ValueError(refusal)


def save_state(srigl: SRigL, path: str) -> None:
    """Write `SRigL.state_dict` as a safetensors file, whole or not at all."""
    state = srigl.state_dict()
    metadata = {"steps": str(state["steps"]), "postponed": json.dumps(state["postponed"])}
    tensors = {name: bits.cpu() for name, bits in state["explored"].items()}
    save_file(tensors, path + ".part", metadata=metadata)
    os.replace(path + ".part", path)


def load_state(srigl: SRigL, path: str, step: int) -> bool:
    """Load what `save_state` wrote at `step`; False, and nothing is loaded, if the file is of another step.

    Raises:
        ValueError: the file is damaged, or of a model with other condensed layers.
    """
    try:
        with safe_open(path, framework="pt") as reader:
            metadata = reader.metadata() or {}
            if int(metadata["steps"]) != step:
                return False
            explored: dict[str, torch.Tensor] = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        srigl.load_state_dict({"steps": step, "postponed": json.loads(metadata["postponed"]), "explored": explored})
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or of another model ({error}); delete it to resume without it, which loses the ITOP rate "
            "and an update postponed at that step"
        ) from error
    return True


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> str:
    return os.path.join(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
