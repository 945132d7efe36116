"""Shared by the tests and by the examples in docstrings: small models and data, one thread, no network."""

import importlib.util
import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, TrainingArguments

import hf_srigl
from hf_srigl.training.history import leave_pictures

# triton is optional; what imports it can only be looked through for examples where it is installed
_NEED_TRITON = ["hf_srigl/ops/cuda/triton_kernels.py", "tests/ops/compile_triton.py"]
collect_ignore = [] if importlib.util.find_spec("triton") else _NEED_TRITON


def pytest_collection_modifyitems(config, items):
    """Soak tests run only when asked for: ``pytest -m soak``."""
    if "soak" not in config.getoption("markexpr"):
        chosen = [item for item in items if "soak" not in item.keywords]
        config.hook.pytest_deselected(items=[item for item in items if "soak" in item.keywords])
        items[:] = chosen


class Toy(Dataset):
    """Eight tokens; the label says whether the first one is above the middle of the vocabulary."""

    def __init__(self, size=64, vocab=100):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, vocab, (size, 8), generator=generator)
        self.labels = (self.ids[:, 0] > vocab // 2).long()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": torch.ones(8, dtype=torch.long), "labels": self.labels[i]}


def tiny_bert(seed=0, **overrides):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = BertConfig(**sizes | {"num_attention_heads": 4, "max_position_embeddings": 16} | overrides)
    return BertForSequenceClassification(config)


def training_args(output_dir, **overrides):
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2, "save_strategy": "no"}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    return TrainingArguments(str(output_dir), **defaults | quiet | overrides)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Most tests train without leaving pictures, which take longer than the training; `pictures` undoes this."""
    monkeypatch.setattr("hf_srigl.training.callback.leave_pictures", lambda *args: [])


@pytest.fixture
def pictures(_no_pictures, monkeypatch):
    """In this test the Trainer leaves its pictures, as it does outside of tests."""
    monkeypatch.setattr("hf_srigl.training.callback.leave_pictures", leave_pictures)


@pytest.fixture
def logging_as_before():
    """Takes away the handlers that an example script adds to the root logger."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A function that writes one of the data sets of examples/data.py, once."""
    import data as example_data
    from shared import UserError

    base, written = tmp_path_factory.mktemp("data"), {}

    def write(name, **options):
        if name not in written:
            folder = base / name
            folder.mkdir(exist_ok=True)
            try:
                example_data.SETS[name](folder, **options)
            except (UserError, ImportError) as error:
                pytest.skip(str(error))
            written[name] = folder
        return written[name]

    return write


@pytest.fixture(autouse=True)
def _names_in_docstrings(doctest_namespace, request, tmp_path, monkeypatch):
    doctest_namespace.update(vars(hf_srigl))
    doctest_namespace.update(torch=torch, tmp_path=tmp_path)
    if "training/trainer" in request.node.nodeid or "training/callback" in request.node.nodeid:
        monkeypatch.setattr(PrinterCallback, "on_log", lambda *args, **kwargs: None)  # examples show no logs
        args = training_args(tmp_path / "out")
        config = hf_srigl.SRigLConfig(sparsity=0.75, update_every=2, gamma_sal=None)
        doctest_namespace.update(
            training_args=args,
            train_dataset=Toy(),
            dense_model=tiny_bert(),
            sparse_model=hf_srigl.sparsify(tiny_bert(), config),
        )
