"""The example for masked language models: it learns from real text, and each of its options does what it says."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from example_runs import log_of, options, results, updates
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

import hf_srigl
import run_mlm
import shared
import texts
from hf_srigl.model.attachment import condensed_layers

CONFIG = Path(hf_srigl.__file__).parent.parent / "examples" / "configs" / "shakespeare_mlm.yaml"

pytestmark = pytest.mark.usefixtures("logging_as_before")

LINES = [
    "To be, or not to be, that is the question:\n",
    "\n",
    "Whether 'tis nobler in the mind to suffer\n",
    " \t\n",
    "Ay\n",
]
TINY = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64,max_position_embeddings=32"


@pytest.fixture
def lines(tmp_path):
    """A file of 100 lines, two in five of them empty."""
    (tmp_path / "lines.txt").write_text("".join(LINES * 20))
    return tmp_path / "lines.txt"


@pytest.fixture
def made(monkeypatch):
    """The Trainers that the script makes."""
    trainers = []

    def make(*arguments, **more):
        trainers.append(shared.make_trainer(*arguments, **more))
        return trainers[-1]

    monkeypatch.setattr(run_mlm, "make_trainer", make)
    return trainers


def run(folder, path, *flags, **more):
    """One step of a tiny new BERT on the file."""
    settings = {"model_type": "bert", "config_overrides": TINY, "train_tokenizer": 280, "max_seq_length": 16}
    settings |= {"train_file": path, "max_steps": 1, "sparsity": 0.5}
    run_mlm.main(options(folder, *flags, **settings | more))


# --- on real text ----------------------------------------------------------------------------------------------------


def test_mlm_beats_the_frequencies_of_its_tokens(files, tmp_path):
    text = files("shakespeare")
    for name, size in (("train", 300_000), ("validation", 20_000)):
        (tmp_path / f"{name}.txt").write_text((text / f"{name}.txt").read_text()[-size:])
    small = "hidden_size=64,num_hidden_layers=2,num_attention_heads=4,intermediate_size=64,max_position_embeddings=32"
    held_text = {"validation_file": tmp_path / "validation.txt", "max_seq_length": 32}
    run_mlm.main(
        options(
            tmp_path, CONFIG, train_file=tmp_path / "train.txt", train_tokenizer=260, max_steps=120, sparsity=0.5,
            config_overrides=f"{small},local_attention=8,initializer_range=0.1", per_device_train_batch_size=32,
            learning_rate=1e-2, **held_text,
        )
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens, held = (
        tokenizer((tmp_path / f"{name}.txt").read_text(), add_special_tokens=False)["input_ids"]
        for name in ("train", "validation")
    )
    counts = Counter(tokens)
    unigram = math.exp(-sum(math.log((counts[t] + 1) / (len(tokens) + 260)) for t in held) / len(held))
    perplexity = results(tmp_path)["perplexity"]
    assert perplexity == pytest.approx(math.exp(results(tmp_path)["eval_loss"]))
    assert perplexity < 0.6 * unigram
    assert results(tmp_path)["train_target_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert len(updates(tmp_path)) > 10
    assert len(condensed_layers(AutoModelForMaskedLM.from_pretrained(tmp_path / "out"))) == 8
    fill = pipeline("fill-mask", model=str(tmp_path / "out"), device="cpu")
    assert fill("What is th[MASK] matter?")[0]["token_str"] == "e"
    # The saved model alone is asked for the same tokens as the trained one was.
    again = {"model_name_or_path": tmp_path / "out", "output_dir": tmp_path / "again", "per_device_eval_batch_size": 32}
    run_mlm.main(options(tmp_path, "--do_eval", **held_text | again))
    assert results(tmp_path, "again")["perplexity"] == pytest.approx(perplexity, rel=1e-4)


def test_a_pretrained_encoder_adapts_to_shakespeare(files, tmp_path):
    (tmp_path / "train.txt").write_text((files("shakespeare") / "train.txt").read_text()[-20_000:])
    run_mlm.main(
        options(
            tmp_path, "--do_train", "--line_by_line", model_name_or_path=files("minilm"), train_file=tmp_path / "train.txt",
            max_seq_length=16, max_steps=4, update_every=2, sparsity=0.5, learning_rate=2e-3, logging_steps=1,
            per_device_train_batch_size=4,
        )
    )  # fmt: skip
    losses = [row["loss"] for row in log_of(tmp_path) if "loss" in row]
    assert losses[0] == pytest.approx(math.log(30522), rel=0.1)  # the head is new: it guesses
    assert losses[-1] < losses[0] - 1
    assert len(updates(tmp_path)) == 1
    assert len(condensed_layers(AutoModelForMaskedLM.from_pretrained(tmp_path / "out"))) == 36


def test_dense_trains_the_baseline(lines, tmp_path, made, monkeypatch):
    cards = []
    monkeypatch.setattr(run_mlm, "finish", lambda trainer, **card: cards.append(card))
    run(tmp_path, lines, "--do_train", "--dense")
    assert type(made[0]) is Trainer
    assert cards[0]["tasks"] == "fill-mask"
    assert results(tmp_path)["train_target_sparsity"] == 0
    assert not condensed_layers(AutoModelForMaskedLM.from_pretrained(tmp_path / "out"))


@pytest.mark.parametrize(("kind", "longest"), [("bert", 32), ("roberta", 31), ("modernbert", 32)])
def test_kinds_of_new_models(kind, longest, lines, tmp_path, made):
    run(tmp_path, lines, "--do_train", "--do_eval", model_type=kind, max_seq_length=100, max_steps=2, update_every=1,
        validation_file=lines)  # fmt: skip
    assert {len(ids) for ids in made[0].train_dataset["input_ids"]} == {longest}  # all that the model can read
    assert math.isfinite(results(tmp_path)["eval_loss"])
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert condensed_layers(loaded)
    assert loaded.config.num_hidden_layers == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.config.pad_token_id == tokenizer.pad_token_id == 0
    assert loaded.config.vocab_size == len(tokenizer)


# --- options ---------------------------------------------------------------------------------------------------------


def test_blocks_or_lines(lines, tmp_path, made):
    for flags in ((), ("--line_by_line",), ("--line_by_line", "--pad_to_max_length")):
        run(tmp_path, lines, "--do_train", *flags, output_dir=tmp_path / str(len(flags)), validation_split_percentage=0)
    tokenizer = made[0].processing_class
    blocks, short, padded = (trainer.train_dataset for trainer in made)
    whole = tokenizer(lines.read_text(), add_special_tokens=False)["input_ids"]
    assert {(len(ids), ids[0], ids[-1]) for ids in blocks["input_ids"]} == {(16, 1, 2)}  # [CLS] ... [SEP]
    assert [token for ids in blocks["input_ids"] for token in ids[1:-1]] == whole[: len(whole) // 14 * 14]
    expected = [tokenizer(line.strip(), truncation=True, max_length=16)["input_ids"] for line in LINES if line.strip()]
    assert short["input_ids"][:] == expected * 20  # the empty ones are left out
    assert max(map(len, expected)) == 16 > min(map(len, expected))
    assert {len(ids) for ids in padded["input_ids"]} == {16}
    assert [sum(row) for row in padded["attention_mask"]] == [len(ids) for ids in short["input_ids"]]
    for trainer in made[1:]:
        for batch in trainer.get_train_dataloader():
            assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


@pytest.mark.parametrize("probability", [0.15, 0.6])
def test_the_share_of_tokens_to_guess(probability, lines, tmp_path, made):
    run(tmp_path, lines, "--do_train", mlm_probability=probability)
    counts = torch.zeros(3)
    for _ in range(20):
        for batch in made[0].get_train_dataloader():
            asked = batch["labels"] != -100
            assert not asked[:, [0, -1]].any()
            counts += torch.tensor([asked.sum(), (asked & (batch["input_ids"] == 3)).sum(), asked[:, 1:-1].numel()])
    assert counts[0] / counts[2] == pytest.approx(probability, abs=0.03)
    assert counts[1] / counts[0] == pytest.approx(0.8, abs=0.04)


def test_a_batch_asks_for_one_token_at_least():
    tokenizer = texts.train_tokenizer(Dataset.from_dict({"text": LINES}), 280, run_mlm.SPECIAL_TOKENS)
    collate = run_mlm.Masking(tokenizer, mlm_probability=1e-6)
    whole = [tokenizer(line) for line in ("Ay", "suffer")]
    places = set()
    for _ in range(60):
        batch = collate([dict(row) for row in whole])
        (place,) = (batch["labels"] != -100).nonzero().tolist()
        row, column = place
        assert batch["labels"][row, column] == whole[row]["input_ids"][column]
        assert batch["input_ids"][row, column] == tokenizer.mask_token_id
        assert whole[row]["input_ids"][column] not in tokenizer.all_special_ids
        places.add((row, column))
    assert len(places) == sum(len(row["input_ids"]) - 2 for row in whole)


def test_how_many_samples(lines, tmp_path, made):
    flags = ("--do_train", "--do_eval", "--line_by_line")
    run(tmp_path, lines, *flags)
    assert (results(tmp_path)["train_samples"], results(tmp_path)["eval_samples"]) == (57, 3)  # 5% of 100 lines
    more = {"validation_split_percentage": 20, "max_train_samples": 11, "output_dir": tmp_path / "split"}
    run(tmp_path, lines, *flags, **more)
    assert (results(tmp_path, "split")["train_samples"], results(tmp_path, "split")["eval_samples"]) == (11, 12)
    run(tmp_path, lines, *flags, validation_file=lines, max_eval_samples=7, output_dir=tmp_path / "held")
    assert (results(tmp_path, "held")["train_samples"], results(tmp_path, "held")["eval_samples"]) == (60, 7)


@pytest.mark.parametrize("cut", [run_mlm.in_lines, run_mlm.in_wrapped_blocks])
def test_how_it_is_tokenized(cut, monkeypatch):
    rows = Dataset.from_dict({"text": LINES})
    tokenizer = texts.train_tokenizer(rows, 280, run_mlm.SPECIAL_TOKENS)
    seen = []
    monkeypatch.setattr(Dataset, "map", lambda self, *arguments, **more: seen.append(more) or self)
    for settings in ({}, {"overwrite_cache": True}, {"preprocessing_num_workers": 2}):
        cut(rows, tokenizer, 16, run_mlm.DataArguments(**settings))
        used = {(more["load_from_cache_file"], more["num_proc"]) for more in seen}
        assert used == {("overwrite_cache" not in settings, settings.get("preprocessing_num_workers"))}
        seen.clear()


def test_accumulation_leaves_the_loss_as_it_is(lines, tmp_path):
    losses = []
    for parts in (1, 4):
        out = {"output_dir": tmp_path / str(parts), "gradient_accumulation_steps": parts}
        run(tmp_path, lines, "--do_train", "--dense", per_device_train_batch_size=16 // parts, logging_steps=1, **out)
        losses += [row["loss"] for row in log_of(tmp_path, str(parts)) if "loss" in row]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_rows_without_a_text_are_left_out(tmp_path, caplog):
    (tmp_path / "rows.csv").write_text("text,number\nTo be,1\n,2\nor not,3\n")
    model_args = texts.ModelArguments(model_type="gpt2", train_tokenizer=300, cache_dir=str(tmp_path))
    text_args = texts.TextArguments(train_file=str(tmp_path / "rows.csv"), validation_split_percentage=0)
    data = texts.load_texts(model_args, text_args, TrainingArguments(do_train=True))
    assert data["train"]["text"][:] == ["To be", "or not"]
    assert "1 of 3 rows of the train data have no text: left out." in caplog.text
