"""Each example script runs offline on real data from installed packages, updates its topology, and beats chance."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from example_runs import options, results, updates
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    pipeline,
)

import data as example_data
import glue_metrics
import hf_srigl
import run_clm
import run_glue
import run_imagenet
import shared
import texts
from conftest import tiny_bert
from hf_srigl.model.attachment import condensed_layers

ROOT = Path(hf_srigl.__file__).parent.parent
CONFIGS = ROOT / "examples" / "configs"


pytestmark = pytest.mark.usefixtures("logging_as_before")


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    def load(*names):
        raise ConnectionError

    monkeypatch.setattr(glue_metrics.evaluate, "load", load)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a BERT of two layers, 32 wide, with a tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_bert(vocab_size=300, max_position_embeddings=32).bert.save_pretrained(folder)
    text = ["good and bad films", "what a great story", "a dull story"] * 20
    texts.train_tokenizer(Dataset.from_dict({"text": text}), 300, run_clm.SPECIAL_TOKENS).save_pretrained(folder)
    return folder


@pytest.fixture
def words(tmp_path):
    """Training and test rows that a tiny model can tell apart: the folder of train.csv and test.csv."""
    rows = [("a great story", "good"), ("a dull film", "bad")] * 8
    for name, part in (("train", rows), ("test", rows[:6])):
        lines = [f"{sentence},{label}" for sentence, label in part]
        (tmp_path / f"{name}.csv").write_text("\n".join(["sentence,label", *lines]) + "\n")
    return tmp_path


# --- each script on real data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--dense",)], ids=["sparse", "dense"])
def test_glue_learns_the_kinds_of_questions(flags, files, tmp_path):
    trec, model = files("trec"), files("minilm")
    run_glue.main(
        options(
            tmp_path, CONFIGS / "glue.yaml", *flags, model_name_or_path=model, train_file=trec / "train.csv",
            validation_file=trec / "validation.csv", sparsity=0.5, max_steps=20, update_every=4, per_device_train_batch_size=16,
            max_seq_length=16, max_train_samples=320, max_eval_samples=150, per_device_eval_batch_size=50, learning_rate=5e-4,
        )
    )  # fmt: skip
    lines = (trec / "validation.csv").read_text().splitlines()[1:151]
    commonest = Counter(line.rsplit(",", 1)[1] for line in lines).most_common(1)[0][1] / 150
    assert results(tmp_path)["eval_accuracy"] > commonest + 0.15
    assert (results(tmp_path)["train_samples"], results(tmp_path)["eval_samples"]) == (320, 150)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert set(loaded.config.label2id) == set(example_data.KINDS.values())
    if flags:
        assert results(tmp_path)["train_target_sparsity"] == 0
        assert updates(tmp_path) == []
        assert not condensed_layers(loaded)
    else:
        assert results(tmp_path)["train_target_sparsity"] == pytest.approx(0.5, abs=0.01)
        assert len(updates(tmp_path)) == 3
        assert min(updates(tmp_path)) > 0
        assert len(condensed_layers(loaded)) == 37


def test_imagenet_learns_digits_from_a_folder(files, tmp_path):
    digits = files("digits", limit=80)
    run_imagenet.main(
        options(
            tmp_path, CONFIGS / "digits.yaml", train_dir=digits / "train", validation_dir=digits / "validation",
            max_steps=75, max_eval_samples=300,
        )
    )  # fmt: skip
    assert results(tmp_path)["eval_accuracy"] > 0.3  # chance is 0.1
    assert results(tmp_path)["train_target_sparsity"] == pytest.approx(0.9, abs=0.01)
    assert len(updates(tmp_path)) > 10
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert len(condensed_layers(loaded)) == 24
    answer = pipeline("image-classification", model=str(tmp_path / "out"))
    image = str(next((digits / "validation" / "0").glob("*.png")))
    assert answer(image)[0]["label"] in list("0123456789")


def test_clm_beats_the_frequencies_of_its_tokens(files, tmp_path):
    text = files("shakespeare")
    for name, size in (("train", 300_000), ("validation", 20_000)):
        (tmp_path / f"{name}.txt").write_text((text / f"{name}.txt").read_text()[-size:])
    run_clm.main(
        options(
            tmp_path, CONFIGS / "shakespeare.yaml", train_file=tmp_path / "train.txt",
            validation_file=tmp_path / "validation.txt", train_tokenizer=300, block_size=64,
            config_overrides="n_embd=64,n_layer=2,n_head=2,n_positions=64,initializer_range=0.1", max_steps=120,
            max_eval_samples=60, sparsity=0.5, max_new_tokens=20, learning_rate=1e-2,
        )
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens, held = (tokenizer((tmp_path / f"{name}.txt").read_text())["input_ids"] for name in ("train", "validation"))
    counts = Counter(tokens)
    unigram = math.exp(-sum(math.log((counts[t] + 1) / (len(tokens) + 300)) for t in held) / len(held))
    assert results(tmp_path)["perplexity"] == pytest.approx(math.exp(results(tmp_path)["eval_loss"]))
    assert results(tmp_path)["perplexity"] < 0.6 * unigram
    assert len(updates(tmp_path)) > 10
    assert (tmp_path / "out" / "sample.txt").read_text().startswith("HAMLET.\n")
    assert len(condensed_layers(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))) == 8


def test_blocks_hold_the_text_one_after_the_other():
    rows = Dataset.from_dict({"text": ["To be, or not to be\n", "that is the question\n"] * 5})
    tokenizer = texts.train_tokenizer(rows, 280, run_clm.SPECIAL_TOKENS)
    whole = tokenizer("".join(rows["text"]))["input_ids"]
    blocks = texts.in_blocks(rows, tokenizer, 7, run_clm.DataArguments())
    assert [token for block in blocks["input_ids"] for token in block] == whole[: len(whole) // 7 * 7]
    batch = run_clm.collate(blocks.to_list()[:3])
    assert batch["labels"].tolist() == batch["input_ids"].tolist() == blocks["input_ids"][:3]
    assert tokenizer.decode(tokenizer("Ünïcode ☃ \t too")["input_ids"]) == "Ünïcode ☃ \t too"
    assert len(tokenizer) == 280


@pytest.fixture(scope="module")
def tiny_gpt(tmp_path_factory):
    """The folder of a GPT-2 of two layers with a tokenizer, all random."""
    folder = tmp_path_factory.mktemp("gpt")
    rows = Dataset.from_dict({"text": ["Q: what is the place of a person\nA:"] * 9})
    tokenizer = texts.train_tokenizer(rows, 300, run_clm.SPECIAL_TOKENS)
    tokenizer.save_pretrained(folder)
    changes = "n_embd=64,n_layer=2,n_head=2,n_positions=64"
    shared.transformers.set_seed(0)
    arguments = texts.ModelArguments(model_type="gpt2", config_overrides=changes, train_tokenizer=300)
    texts.load_model(AutoModelForCausalLM, arguments, tokenizer).save_pretrained(folder)
    return folder


def test_sft_learns_to_answer(files, tiny_gpt, tmp_path):
    sparse_sft = pytest.importorskip("sparse_sft", reason="TRL is not installed: pip install '.[sft]'")
    chat = files("trec-chat")
    sparse_sft.main(
        options(
            tmp_path, CONFIGS / "sft.yaml", model_name_or_path=tiny_gpt, train_file=chat / "train.jsonl",
            validation_file=chat / "validation.jsonl", max_steps=40, max_length=64, max_eval_samples=100,
            max_train_samples=640, per_device_train_batch_size=16, learning_rate=1e-2,
        )
    )  # fmt: skip
    # The answers are " place", " number", ...: their letters are learnt long before the right answer is.
    assert results(tmp_path)["eval_loss"] < 0.5 * math.log(300)
    assert len(updates(tmp_path)) > 5
    assert len(condensed_layers(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))) == 8
    assert isinstance(sparse_sft.SparseSFT.__mro__[2], type)


# --- what run_glue does besides --------------------------------------------------------------------------------------


def glue_like(task):
    """Eight rows for each split that GLUE has, in its columns and types."""
    first, second = glue_metrics.GLUE_TASKS[task]
    classes = {"stsb": None, "mnli": ["entailment", "neutral", "contradiction"]}.get(task, ["no", "yes"])
    columns = {first: Value("string")} | ({second: Value("string")} if second else {})
    features = Features(
        columns | {"label": ClassLabel(names=classes) if classes else Value("float32")} | {"idx": Value("int32")}
    )

    def rows(hidden):
        labels = [-1] * 8 if hidden else [i % len(classes) for i in range(8)] if classes else [i / 2 for i in range(8)]
        sentences = {name: [f"{name} a great story {i}" for i in range(8)] for name in columns}
        return Dataset.from_dict(sentences | {"label": labels, "idx": list(range(8))}, features=features)

    ends = ("_matched", "_mismatched") if task == "mnli" else ("",)
    held = {f"{split}{end}": rows(hidden=split == "test") for split in ("validation", "test") for end in ends}
    return DatasetDict({"train": rows(hidden=False)} | held)


METRICS = {"cola": "matthews_correlation", "stsb": "spearmanr", "mrpc": "f1", "qqp": "f1", "mnli": "accuracy_mm"}


@pytest.mark.parametrize("task", list(glue_metrics.GLUE_TASKS))
def test_every_glue_task(task, tiny, tmp_path, monkeypatch):
    asked = []

    def load_dataset(*arguments, **more):
        asked.append(arguments)
        return glue_like(task)

    monkeypatch.setattr(shared.datasets, "load_dataset", load_dataset)
    steps = ("--do_train", "--do_eval", "--do_predict")
    run_glue.main(
        options(tmp_path, *steps, model_name_or_path=tiny, task_name=task.upper(), max_steps=1, max_seq_length=16)
    )
    assert asked == [("nyu-mll/glue", task)]
    assert f"eval_{METRICS.get(task, 'accuracy')}" in results(tmp_path)
    for name in ("mnli", "mnli-mm") if task == "mnli" else (task,):
        lines = (tmp_path / "out" / f"predict_results_{name}.txt").read_text().splitlines()
        assert lines[0] == "index\tprediction"
        assert len(lines) == 9
        answers = {line.split("\t")[1] for line in lines[1:]}
        if task == "stsb":
            assert all(math.isfinite(float(answer)) for answer in answers)
        else:
            assert answers <= set(glue_like(task)["train"].features["label"].names)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "text-classification" in card
    assert "import hf_srigl" in card


def test_predictions_of_a_trained_model_need_no_training_data(tiny, words, tmp_path):
    train = {"train_file": words / "train.csv", "learning_rate": 1e-2, "sparsity": 0.5, "max_steps": 12}
    run_glue.main(options(tmp_path, "--do_train", model_name_or_path=tiny, **train))
    again = options(tmp_path, "--do_predict", model_name_or_path=tmp_path / "out", output_dir=tmp_path / "predictions")
    (words / "unlabelled.csv").write_text("sentence\na great story\na dull film\n")
    run_glue.main([*again, "--test_file", str(words / "unlabelled.csv")])
    assert (tmp_path / "predictions" / "predict_results_test.txt").read_text() == "index\tprediction\n0\tgood\n1\tbad\n"


def test_fractions_are_a_regression(tiny, tmp_path):
    (tmp_path / "rows.json").write_text(
        "".join(json.dumps({"text": f"a story {i}", "label": i / 4}) + "\n" for i in range(8))
    )
    arguments = {"train_file": tmp_path / "rows.json", "validation_file": tmp_path / "rows.json", "max_steps": 2}
    run_glue.main(options(tmp_path, "--do_train", "--do_eval", "--do_predict", model_name_or_path=tiny, test_file=tmp_path / "rows.json", **arguments))  # fmt: skip  # noqa: E501
    assert results(tmp_path)["eval_mse"] == pytest.approx(results(tmp_path)["eval_loss"], rel=1e-4)


def test_training_resumes_from_the_last_checkpoint(tiny, words, tmp_path):
    arguments = {"model_name_or_path": tiny, "train_file": words / "train.csv", "sparsity": 0.5, "update_every": 2}
    arguments |= {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "max_steps": 6}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_glue.main(options(tmp_path, "--do_train", **arguments | {"output_dir": whole}))
    run_glue.main(options(tmp_path, "--do_train", **arguments | {"output_dir": parts}))
    shutil.rmtree(parts / "checkpoint-6")
    (parts / "model.safetensors").unlink()
    run_glue.main(options(tmp_path, "--do_train", **arguments | {"output_dir": parts}))
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    steps = [
        row["step"] for row in json.loads((parts / "trainer_state.json").read_text())["log_history"] if "loss" in row
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_push_to_hub_with_what_the_card_needs(tiny, words, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **more: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **card: pushed.append(card))
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: None)
    run_glue.main(
        options(
            tmp_path,
            "--do_train",
            "--push_to_hub",
            model_name_or_path=tiny,
            train_file=words / "train.csv",
            max_steps=1,
        )
    )
    assert {"finetuned_from": str(tiny), "tasks": "text-classification"} in pushed


def test_a_condensed_model_trains_on_with_its_own_sparsity(tiny, words, tmp_path):
    train = {"train_file": words / "train.csv", "max_steps": 1}
    run_glue.main(options(tmp_path, "--do_train", model_name_or_path=tiny, sparsity=0.75, **train))
    run_glue.main(
        options(tmp_path, "--do_train", model_name_or_path=tmp_path / "out", output_dir=tmp_path / "more", **train)
    )
    again = json.loads((tmp_path / "more" / "all_results.json").read_text())
    assert again["train_target_sparsity"] == results(tmp_path)["train_target_sparsity"] == pytest.approx(0.75, abs=0.02)


def test_the_seed_is_the_topologys_too(tiny, words, tmp_path):
    topologies = []
    for seed in (1, 2):
        out = tmp_path / str(seed)
        train = {"train_file": words / "train.csv", "max_steps": 1, "init": "random", "seed": seed, "output_dir": out}
        run_glue.main(options(tmp_path, "--do_train", model_name_or_path=tiny, **train))
        model = AutoModelForSequenceClassification.from_pretrained(out)
        assert model.config.quantization_config.srigl.seed == seed
        topologies.append(next(iter(condensed_layers(model).values())).indices.tolist())
    assert topologies[0] != topologies[1]


def test_evaluating_a_dense_model_leaves_it_dense(tiny, words, tmp_path, monkeypatch):
    train = {"train_file": words / "train.csv", "max_steps": 1}
    run_glue.main(options(tmp_path, "--do_train", "--dense", model_name_or_path=tiny, **train))
    made = []
    monkeypatch.setattr(run_glue, "make_trainer", lambda *a, **k: made.append(shared.make_trainer(*a, **k)) or made[0])
    run_glue.main(
        options(tmp_path, "--do_eval", model_name_or_path=tmp_path / "out", validation_file=words / "test.csv")
    )
    assert type(made[0]) is Trainer
    assert not condensed_layers(made[0].model)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_padding_and_the_cache_of_tokens(tiny, words, tmp_path, monkeypatch, padded, again):
    made, from_cache, original = [], [], Dataset.map

    def watched(self, *args, **kwargs):
        from_cache.append(kwargs.get("load_from_cache_file"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Dataset, "map", watched)
    monkeypatch.setattr(run_glue, "make_trainer", lambda *a, **k: made.append(shared.make_trainer(*a, **k)) or made[0])
    flags = ["--pad_to_max_length"] * padded + ["--overwrite_cache"] * again
    train = {"train_file": words / "train.csv", "max_steps": 1, "max_seq_length": 24}
    run_glue.main(options(tmp_path, "--do_train", *flags, model_name_or_path=tiny, **train))
    assert from_cache == [not again]
    lengths = {len(ids) for ids in made[0].train_dataset["input_ids"]}
    assert lengths == {24} if padded else max(lengths) < 24
