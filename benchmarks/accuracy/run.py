"""Train one task with several methods, sparsities, learning rates and seeds; append one JSON line for each run.

    python benchmarks/accuracy/run.py --task trec --methods dense ramp --sparsity 0.9 --lr 3e-4 --seeds 0 1 2

Runs that the output file has already are left out, so an interrupted grid goes on where it stopped. `table.py` turns the
lines into tables.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from methods import DISTILLED, METHODS, config_of
from safetensors.torch import load_model, save_model
from tasks import TASKS, Task
from torch import nn
from torch.utils.data import Subset
from transformers import PrinterCallback, Trainer, TrainingArguments
from variants import VARIANTS, parts_of_a_batch

from hf_srigl import SparseTrainer, sparsity_report

RESULTS = Path(__file__).parent / "results"
KEYS = ("task", "method", "variant", "sparsity", "lr", "epochs", "batch", "seed", "overrides")


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    output = arguments.output or RESULTS / f"{arguments.task}.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    done = {_key(json.loads(line)) for line in output.read_text().splitlines()} if output.exists() else set()

    def record(run: dict[str, Any], result: dict[str, Any]) -> None:
        done.add(_key(run))
        with output.open("a") as file:
            file.write(json.dumps({**run, **result}) + "\n")
        print(json.dumps({**run, **result}), flush=True)

    task = None
    grid = itertools.product(arguments.seeds, arguments.methods, arguments.sparsity, arguments.lr)
    for seed, method, sparsity, lr in grid:
        run = {
            "task": arguments.task,
            "method": method,
            "variant": None if METHODS[method] is None else arguments.variant,
            "sparsity": 0.0 if METHODS[method] is None else sparsity,
            "lr": lr,
            "epochs": arguments.epochs,
            "batch": arguments.batch,
            "seed": seed,
            "overrides": {} if METHODS[method] is None else arguments.set,
        }
        if _key(run) in done:
            continue
        task = TASKS[arguments.task](arguments.data) if task is None else task
        teacher = None
        if method in DISTILLED:
            plain = {"method": "dense", "variant": None, "sparsity": 0.0, "overrides": {}}
            dense = {**run, **plain, "lr": arguments.teacher_lr}
            path = output.parent / "teachers" / "-".join(str(dense[key]) for key in KEYS if key not in plain)
            if not path.exists():  # the dense run is a row too, unless it is there
                trained, result = train(task, dense, evaluate=arguments.evaluate)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_model(trained, path)
                if _key(dense) not in done:
                    record(dense, result)
            teacher = task.model(seed)
            load_model(teacher, path)
        record(run, train(task, run, teacher, arguments.evaluate)[1])


def train(
    task: Task, run: dict[str, Any], teacher: nn.Module | None = None, evaluate: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """One training; its model, its score on the validation and the test split, and what it took."""
    start = time.process_time()  # of this process's cores, so that other work on the machine does not count
    overrides = {**({"exclude_modules": list(task.head)} if task.head else {}), **run["overrides"]}
    config = config_of(run["method"], run["sparsity"], run["seed"], **overrides)
    parts = parts_of_a_batch(run["variant"])
    with tempfile.TemporaryDirectory() as folder:
        training_arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=run["batch"] // parts,
            gradient_accumulation_steps=parts,
            per_device_eval_batch_size=256,
            num_train_epochs=run["epochs"],
            learning_rate=run["lr"],
            weight_decay=0.01,
            warmup_steps=0.1,
            lr_scheduler_type="cosine",
            train_sampling_strategy=task.sampling,
            seed=run["seed"],
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        options: dict[str, Any] = {
            "model": task.model(run["seed"]),
            "args": training_arguments,
            "train_dataset": task.train,
            "data_collator": task.collator,
            "compute_metrics": _accuracy if task.metric == "accuracy" else None,
        }
        distilled = DISTILLED.get(run["method"], {})
        trainer = (
            Trainer(**options)
            if config is None
            else SparseTrainer(srigl_config=config, teacher=teacher, **distilled, **options)
        )
        trainer.remove_callback(PrinterCallback)
        with VARIANTS[run["variant"]](trainer) if run["variant"] else contextlib.nullcontext():
            steps = trainer.train().global_step
        seconds = time.process_time() - start
        scores = {}
        for name, dataset in (("validation", task.validation), ("test", task.test)):
            part = dataset if evaluate is None else Subset(dataset, range(evaluate))
            metrics = trainer.evaluate(part)
            scores[name] = (
                100 * metrics["eval_accuracy"] if task.metric == "accuracy" else math.exp(metrics["eval_loss"])
            )
    report = sparsity_report(trainer.model)
    neurons = sum(row.out_features for row in report.rows)
    return trainer.model, {
        **scores,
        "steps": steps,
        "cpu_seconds": round(seconds, 1),
        "target_sparsity": round(report.target_sparsity, 4),
        "active_neurons": round(sum(row.active_neurons for row in report.rows) / neurons, 4) if neurons else 1.0,
    }


def _accuracy(prediction: Any) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(logits.argmax(-1) == prediction.label_ids))}


def _key(run: dict[str, Any]) -> str:
    known = [run.get(key) for key in KEYS]  # lines written before there were variants have none
    return json.dumps(known, sort_keys=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["dense"], metavar="METHOD")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.9], metavar="S")
    parser.add_argument("--lr", nargs="+", type=float, default=[3e-4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--teacher-lr", type=float, default=3e-4, help="of the dense teacher of the -kd methods")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--set", type=json.loads, default={}, metavar="JSON", help="more options: '{\"drop_fraction\": 0.1}'"
    )
    parser.add_argument("--variant", choices=VARIANTS, help="a departure from what the library does (variants.py)")
    parser.add_argument("--data", type=Path, help="folder of the data, where it is not where its package puts it")
    parser.add_argument("--output", type=Path, help="file of JSON lines (results/TASK.jsonl beside this file)")
    parser.add_argument("--evaluate", type=int, metavar="N", help="examples to evaluate on (all), for a quick look")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
