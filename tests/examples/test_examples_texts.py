"""Texts for the language models: the files people have, and what is found out before the training."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from example_runs import options
from transformers import BertConfig, BertForMaskedLM, MambaConfig, MambaForCausalLM, TrainingArguments

import run_clm
import run_mlm
import texts
from shared import UserError

pytestmark = pytest.mark.usefixtures("logging_as_before")

SMALL = "n_embd=32,n_layer=1,n_head=2,n_positions=32"
LINES = ["To be, or not to be", "null", "that is the question"]


def run(folder, *flags, **more):
    settings = {
        "model_type": "gpt2",
        "config_overrides": SMALL,
        "train_tokenizer": 280,
        "block_size": 8,
        "max_steps": 1,
    }
    run_clm.main(options(folder, *flags, sparsity=0.5, **settings | more))


def load(folder, **files):
    model_args = texts.ModelArguments(model_type="gpt2", train_tokenizer=300, cache_dir=str(folder / "cache"))
    text_args = texts.TextArguments(validation_split_percentage=0, **{name: str(path) for name, path in files.items()})
    return texts.load_texts(model_args, text_args, TrainingArguments(do_train=True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\n".join(LINES).encode()),
        ("bom.txt", b"\xef\xbb\xbf" + "\n".join(LINES).encode()),
        ("a.txt.gz", gzip.compress("\n".join(LINES).encode())),
        ("a.csv", ("text,n\n" + "".join(f'"{line}",1\n' for line in LINES)).encode()),
        ("bom.csv", b"\xef\xbb\xbf" + ("text,n\n" + "".join(f'"{line}",1\n' for line in LINES)).encode()),
        ("a.tsv", ("text\tn\n" + "".join(f"{line}\t1\n" for line in LINES)).encode()),
        ("a.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in LINES).encode()),
        ("a.json", json.dumps([{"text": line} for line in LINES]).encode()),
        ("A.CSV.gz", gzip.compress(("text,n\n" + "".join(f'"{line}",1\n' for line in LINES)).encode())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_file_gives_the_same_text(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert [text.strip() for text in load(tmp_path, train_file=tmp_path / name)["train"]["text"]] == LINES


def test_each_split_from_a_file_of_its_own_kind(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": LINES}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text("\n".join(LINES))
    data = load(tmp_path, train_file=tmp_path / "a.parquet", validation_file=tmp_path / "b.txt")
    assert data["train"]["text"][:] == [text.strip() for text in data["validation"]["text"]] == LINES


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "text,n,m\nx,1,2\nwell, well,1,2\n", "Expected 3 fields in line 3, saw 4"),
        ("a.json", '{"text": "x"}\n{"text"\n', "JSON parse error"),
        ("a.parquet", "no", "Parquet file size is 2 bytes"),
    ],
)
def test_the_cause_is_passed_on_with_the_file(name, content, sentence, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        load(tmp_path, train_file=tmp_path / name)
    assert str(error.value).startswith(f"the data cannot be loaded: {tmp_path / name}: ")
    assert sentence in str(error.value)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(LINES * 10))
    return tmp_path / "text.txt"


@pytest.mark.parametrize(
    ("prompt", "more", "sentence"),
    [
        (
            "To be",
            {},
            "and --max_new_tokens is 100, together more than the 32 that the model reads: make one of them shorter",
        ),
        ("To be, or not to be " * 9, {"max_new_tokens": 1}, "--prompt has "),
        ("", {"max_new_tokens": 1}, "--prompt has no tokens: give a word at least, or leave it out"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused_before_training(prompt, more, sentence, text, tmp_path):
    with pytest.raises(UserError) as error:
        run(tmp_path, "--do_train", train_file=text, prompt=prompt, **more)
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_longest_prompt_that_fits(text, tmp_path):
    tokenizer = texts.train_tokenizer(
        Dataset.from_text(str(text), cache_dir=str(tmp_path)), 280, run_clm.SPECIAL_TOKENS
    )
    new = 32 - len(tokenizer("To be")["input_ids"])
    run(tmp_path, "--do_train", train_file=text, prompt="To be", max_new_tokens=new)
    assert (tmp_path / "out" / "sample.txt").read_text().startswith("To be")


def test_a_sample_that_fails_does_not_cost_the_card(text, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run_clm, "sample", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, "--do_train", train_file=text, prompt="To be", max_new_tokens=3)
    assert (tmp_path / "out" / "README.md").is_file()


def test_how_much_a_model_can_read():
    small = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    bert = BertConfig(**small, num_attention_heads=1, intermediate_size=8, max_position_embeddings=20)
    assert texts.longest_input(BertForMaskedLM(bert)) == 20
    assert texts.longest_input(MambaForCausalLM(MambaConfig(**small))) is None


def test_text_without_a_line_to_mask(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n\n" * 9)
    small = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64"
    settings = {
        "model_type": "bert",
        "config_overrides": small,
        "train_tokenizer": 280,
        "train_file": tmp_path / "blank.txt",
    }
    with pytest.raises(UserError, match="the training text has no line with a token that could be masked"):
        run_mlm.main(options(tmp_path, "--do_train", "--line_by_line", **settings))


def test_nulls_in_data_for_sft(tmp_path):
    sparse_sft = pytest.importorskip("sparse_sft", reason="TRL is not installed: pip install '.[sft]'")
    rows = [{"prompt": "Q", "completion": "A"}, {"prompt": "Q", "completion": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data_args = sparse_sft.DataArguments(train_file=str(tmp_path / "a.jsonl"))
    model_args = sparse_sft.ModelArguments(model_name_or_path="no/model", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(
        UserError, match=r"a.jsonl, row 2, column 'completion': nothing to learn from; leave the row out"
    ):
        sparse_sft.load(model_args, data_args)
