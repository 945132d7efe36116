"""What run_glue.py makes of labels: several a row, fractions, hidden ones; from training to predictions."""

import json

import pytest
from datasets import Dataset
from example_runs import options, results
from transformers import AutoModelForSequenceClassification

import labels
import run_clm
import run_glue
import texts
from conftest import tiny_bert
from shared import UserError

pytestmark = pytest.mark.usefixtures("logging_as_before")

STORIES = ["a great story", "a dull film", "a great dull story"]
SEVERAL = [["good"], ["bad"], ["bad", "good"]]
VECTORS = [[0, 1], [1, 0], [1, 1]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    texts.train_tokenizer(Dataset.from_dict({"text": STORIES}), 300, run_clm.SPECIAL_TOKENS).save_pretrained(folder)
    tiny_bert(vocab_size=300, max_position_embeddings=32).bert.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tiny, tmp_path):
    """Runs run_glue.py on rows (written as json lines) for each split given."""

    def go(*flags, out="out", model=tiny, max_steps=1, **rows):
        settings = {"model_name_or_path": model, "output_dir": tmp_path / out, "max_steps": max_steps, "sparsity": 0.5}
        for split, part in rows.items():
            path = tmp_path / f"{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
            settings[f"{split}_file"] = path
        steps = {"train": "--do_train", "validation": "--do_eval", "test": "--do_predict"}
        more = [steps[split] for split in rows]
        run_glue.main(options(tmp_path, *more, *flags, learning_rate=1e-2, **settings))

    return go


def labelled(values):
    return [{"sentence": story, "label": value} for story, value in zip(STORIES, values, strict=True)]


def predictions(tmp_path, out="out"):
    lines = (tmp_path / out / "predict_results_test.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    return [line.split("\t")[1] for line in lines[1:]]


TEST = [{"sentence": story} for story in STORIES]


@pytest.mark.parametrize(("values", "names"), [(SEVERAL, ["bad", "good"]), (VECTORS, ["LABEL_0", "LABEL_1"])])
def test_several_labels_a_row(values, names, run, tmp_path):
    run(max_steps=40, train=labelled(values) * 8, validation=labelled(values), test=TEST)
    assert results(tmp_path)["eval_f1_micro"] == results(tmp_path)["eval_f1_macro"] == 1
    spelled = [names[1]], [names[0]], names
    assert predictions(tmp_path) == [json.dumps(row) for row in spelled]
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert (config.problem_type, list(config.label2id)) == (labels.MULTI, names)
    again = {"model": tmp_path / "out", "validation": labelled(values), "test": TEST}
    run(out="again", **again)
    assert results(tmp_path, "again")["eval_f1_micro"] == 1
    run("--multi_label_threshold", "0.999999", out="strict", **again)
    assert predictions(tmp_path, "strict") == ["[]"] * 3
    run("--multi_label_threshold", "0.000001", out="loose", **again)
    assert predictions(tmp_path, "loose") == [json.dumps(names)] * 3


def test_a_column_for_each_label(run, tmp_path):
    part = [{"body": s, "good": v[1], "bad": v[0]} for s, v in zip(STORIES, VECTORS, strict=True)]
    flags = ("--label_column_names", "bad,good", "--text_column_names", "body")
    run(*flags, max_steps=40, train=part * 8, validation=part)
    assert results(tmp_path)["eval_f1_micro"] == 1
    turned = ("--label_column_names", "good,bad", "--text_column_names", "body")
    run(*turned, out="again", model=tmp_path / "out", validation=part)
    assert results(tmp_path, "again")["eval_f1_micro"] == 1


def test_a_teacher_is_for_single_classes(run, tiny):
    with pytest.raises(UserError, match="a teacher tells one class of many, not several labels at once"):
        run("--teacher_name_or_path", str(tiny), train=labelled(SEVERAL))


@pytest.mark.parametrize("values", [["good", "bad", "bad"], [1, 0, 0], [0.5, 1.5, 2.5]])
@pytest.mark.parametrize("test", [None, "", -1, "unseen"], ids=str)
def test_labels_of_a_test_are_not_read(values, test, run, tmp_path):
    run(train=labelled(values), test=labelled([test] * 3))
    assert len(predictions(tmp_path)) == 3


def test_what_is_wrong_is_said_before_training(run, tmp_path):
    with pytest.raises(UserError, match="column 'label': the label 'dull' is none of those trained on: bad, good"):
        run(train=labelled(["good", "bad", "bad"]), validation=labelled(["good", "dull", "bad"]))
    with pytest.raises(UserError, match=r"test.jsonl has no column 'sentence' \(--text_column_names\), only: story"):
        run(train=labelled(["good", "bad", "bad"]), test=[{"story": "a great story"}])
    with pytest.raises(UserError, match=r"validation.jsonl has no column 'label' \(--label_column_names\)"):
        run(train=labelled(["good", "bad", "bad"]), validation=TEST)
    with pytest.raises(UserError, match="every label is 'good': one class, nothing to learn"):
        run(train=labelled(["good"] * 3))
    assert not (tmp_path / "out").exists()


def test_a_stale_kind_of_problem_in_a_model_does_not_win(run, tmp_path):
    """The loss follows the data and not what the model was trained on before."""
    run("--dense", train=labelled(["good", "bad", "bad"]))
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"problem_type": labels.MULTI}))
    run("--dense", out="again", model=tmp_path / "out", train=labelled(["good", "bad", "bad"]))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["problem_type"] == labels.SINGLE


def test_the_problem_can_be_told(run, tmp_path):
    run("--problem_type", "regression", train=labelled([1, 2, 3]), validation=labelled([1, 2, 3]))
    assert "eval_mse" in results(tmp_path)
    run(out="classes", train=labelled([1, 2, 3]), validation=labelled([1, 2, 3]))
    assert "eval_accuracy" in results(tmp_path, "classes")
