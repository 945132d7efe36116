"""The files people have: each is read as it is written, or one sentence says where it is not as it should be."""

import csv
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig

import labels
import tables
from shared import UserError

HEAD = ["sentence", "label"]
ROWS = [["a great story", "good"], ["a dull film", "bad"]]


@pytest.fixture
def read(tmp_path):
    """Writes a file (text, bytes, rows of a csv or of json lines) and reads it; messages name it as `name`."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list) and isinstance(content[0], list):
            file = io.StringIO(newline="")
            csv.writer(file).writerows(content)
            content = file.getvalue()
        elif isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        content = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return tables.read_table(str(path), "--train_file")

    return write


@pytest.fixture
def says(read, tmp_path):
    """The sentence about a file, without its folder; `then` goes on with the table."""

    def sentence(name, content, then=lambda table: None):
        with pytest.raises(UserError) as error:
            then(read(name, content))
        return str(error.value).replace(f"{tmp_path}/", "")

    return sentence


# --- kinds of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", [HEAD, *ROWS]),
        ("A.CSV", [HEAD, *ROWS]),
        ("a.csv.gz", [HEAD, *ROWS]),
        ("bom.csv", b"\xef\xbb\xbf" + b"sentence,label\na great story,good\na dull film,bad\n"),
        ("windows.csv", b"sentence,label\r\na great story,good\r\na dull film,bad\r\n"),
        ("semicolon.csv", "sentence;label\na great story;good\na dull film;bad\n"),
        ("tab.csv", "sentence\tlabel\na great story\tgood\na dull film\tbad\n"),
        ("spaces.csv", "sentence , label\na great story,good\n\na dull film,bad\n\n"),
        ("a.tsv", "sentence\tlabel\na great story\tgood\na dull film\tbad\n"),
        ("a.json", json.dumps([dict(zip(HEAD, row, strict=True)) for row in ROWS], indent=1)),
        ("a.jsonl", [dict(zip(HEAD, row, strict=True)) for row in ROWS]),
        ("a.json.gz", [dict(zip(HEAD, row, strict=True)) for row in ROWS]),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[:14] else "",
)
def test_every_kind_of_file_gives_the_same_rows(read, name, content):
    table = read(name, content)
    assert {column: list(cells) for column, cells in table.columns.items()} == {
        "sentence": [ROWS[0][0], ROWS[1][0]],
        "label": ["good", "bad"],
    }
    assert labels.labels_in(table, ["label"]).names == ("bad", "good")


def test_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["x", None], "label": [1, 0]}), tmp_path / "a.parquet")
    table = tables.read_table(str(tmp_path / "a.parquet"), "--train_file")
    assert labels.labels_in(table, ["label"]).numbers(table) == [1, 0]
    assert table.texts(["sentence"])["sentence"][:] == ["x", ""]


def test_cells_are_what_is_written(read):
    strange = ["null", "None", "NA", "n/a", "nan", "", "42", "a, b", 'say "so"', "two\nlines", "x" * 200_000]
    table = read("a.csv", [HEAD, *([text, "ab"[i % 2]] for i, text in enumerate(strange))])
    assert table.columns["sentence"] == strange
    assert labels.labels_in(
        read("b.csv", [HEAD, *(["x", word] for word in ("None", "yes", "NA"))]), ["label"]
    ).names == (
        "NA",
        "None",
        "yes",
    )


def test_quotes_in_a_tsv_file_as_glue_has_it(read):
    table = read("a.tsv", 'sentence\tlabel\n"so he said\tgood\nthe "end" of it\tbad\n')
    assert table.columns["sentence"] == ['"so he said', 'the "end" of it']
    assert read("b.tsv", 'sentence\tlabel\n"two\tparts"\tgood\n').columns["sentence"] == ["two\tparts"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "sentence,label\n", "a.csv has no rows, only a head line"),
        ("a.csv", "sentence,label\nwell, well,good\n", "a.csv, line 2: expected 2 columns (sentence, label), found 3; a text "
         "with the separator in it must stand in quotes"),
        ("a.csv", "sentence,label\nx,good\ny\n", "a.csv, line 3: expected 2 columns (sentence, label), found 1; a text with "
         "the separator in it must stand in quotes"),
        ("a.csv", 'sentence,label\nx,good\n"y,bad\n', "a.csv, line 3: unexpected end of data"),
        ("a.csv", "label,sentence,label\na,b,c\n", "a.csv has more than one column named 'label'"),
        ("a.csv", b"sentence,label\ncaf\xe9,good\n", "a.csv, line 2: expected UTF-8, found the byte 0xe9; if it was saved as "
         "latin-1, iconv -f latin1 -t utf-8 makes it UTF-8"),
        ("a.csv", "sentence,label\nx,y\n".encode("utf-16"), "a.csv is UTF-16 or no text at all, expected UTF-8: iconv -f "
         "utf-16 -t utf-8 makes it so"),
        ("a.json", "[]", "a.json has no rows"),
        ("a.json", '{"sentence": "x", "label": 1}\n{"sentence"\n', "a.json, line 2: expected one JSON object a line: Expecting "
         "':' delimiter: line 1 column 12 (char 11)"),
        ("a.json", "[1, 2", "a.json is not JSON: Expecting ',' delimiter: line 1 column 6 (char 5)"),
        ("a.jsonl", '{"label": 1}\n[1, 2]\n', "a.jsonl, line 2: expected an object with columns by name, found [1, 2]"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_file(says, name, content, sentence):
    assert says(name, content) == sentence


def test_a_file_that_is_no_parquet(says):
    assert says("a.parquet", "no").startswith("a.parquet cannot be read: ")


def test_a_damaged_gz_file(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"sentence,label\nx,y\n")[:-6])
    with pytest.raises(UserError, match="cannot be read: Compressed file ended before"):
        tables.read_table(str(tmp_path / "a.csv.gz"), "--train_file")


# --- which columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "row", "found"),
    [
        ("id,b,a,label", "1,x,u,9", ["b", "a"]),
        ("sentence2,sentence1,label", "x,y,9", ["sentence1", "sentence2"]),
        (",sentence,label", "0,x,9", ["sentence"]),  # pandas writes its index into a column without a name
        ("sentence,label", "1984,9", ["sentence"]),  # texts that are numbers
    ],
)
def test_columns_with_sentences(read, head, row, found):
    assert tables.text_columns(read("a.csv", f"{head}\n{row}\n"), ["label"]) == found


def test_what_is_said_of_columns(says):
    lists = [{"sentence": ["a", "great", "story"], "label": 1}]
    assert says("a.json", [{"id": 1, "label": 2}], lambda table: tables.text_columns(table, ["label"])) == (
        "a.json has no column with sentences, only: id, label; name it with --text_column_names"
    )
    assert tables.text_columns(tables.Table("a", {"sentence": [["a"]], "label": [1]}), ["label"]) == ["sentence"]
    assert says("a.json", lists, lambda table: table.texts(["sentence"])) == (
        "a.json, line 1, column 'sentence': expected a text, found a list"
    )
    assert says("a.csv", [HEAD, *ROWS], lambda table: table.texts(["text"])) == (
        "a.csv has no column 'text' (--text_column_names), only: sentence, label"
    )


def test_empty_texts_are_read_as_such_and_counted(read, caplog):
    table = read("a.jsonl", [{"sentence": text, "label": 1} for text in ("x", None, " ", "", 7)])
    assert table.texts(["sentence"])["sentence"][:] == ["x", "", " ", "", "7"]
    assert "line 2, column 'sentence': no text, and 2 more; read as empty texts." in caplog.text


# --- labels ----------------------------------------------------------------------------------------------------------


def rows(*cells):
    return [{"sentence": "x", "label": cell} for cell in cells]


@pytest.mark.parametrize(
    ("cells", "problem", "names", "numbers"),
    [
        (("b", "a", "b"), labels.SINGLE, ("a", "b"), [1, 0, 1]),
        ((" b", "a ", "b"), labels.SINGLE, ("a", "b"), [1, 0, 1]),
        ((10, 9, 10), labels.SINGLE, ("9", "10"), [1, 0, 1]),
        (("10", "9", "10"), labels.SINGLE, ("9", "10"), [1, 0, 1]),
        ((1.0, 0.0, 1.0), labels.SINGLE, ("0", "1"), [1, 0, 1]),
        (("1.0", "0", 1), labels.SINGLE, ("0", "1"), [1, 0, 1]),
        (("007", "012", "007"), labels.SINGLE, ("007", "012"), [0, 1, 0]),
        ((True, False, True), labels.SINGLE, ("False", "True"), [1, 0, 1]),
        ((1, "a", 1), labels.SINGLE, ("1", "a"), [0, 1, 0]),
        ((0.5, 1, 2.0), labels.REGRESSION, (), [0.5, 1.0, 2.0]),
        (("0.5", "-1e3", "2"), labels.REGRESSION, (), [0.5, -1000.0, 2.0]),
        (("0.5", "high", "0.5"), labels.SINGLE, ("0.5", "high"), [0, 1, 0]),
        ((["a"], ["b", "a"], []), labels.MULTI, ("a", "b"), [[1, 0], [1, 1], [0, 0]]),
        (("['a']", '["b", "a"]', "[]"), labels.MULTI, ("a", "b"), [[1, 0], [1, 1], [0, 0]]),
        (([2], [10, 2], []), labels.MULTI, ("2", "10"), [[1, 0], [1, 1], [0, 0]]),
        (([0, 1], [1, 1], [0, 0]), labels.MULTI, ("LABEL_0", "LABEL_1"), [[0, 1], [1, 1], [0, 0]]),
        (("[0, 1]", "[1, 1]", "[0, 0]"), labels.MULTI, ("LABEL_0", "LABEL_1"), [[0, 1], [1, 1], [0, 0]]),
    ],
)
def test_what_labels_mean(read, cells, problem, names, numbers):
    table = read("a.jsonl", rows(*cells))
    found = labels.labels_in(table, ["label"])
    assert (found.problem, found.names, found.numbers(table)) == (problem, names, numbers)
    assert found.outputs == (len(names) or 1)


def test_the_problem_can_be_told(read, says):
    table = read("a.jsonl", rows(1, 2, 3))
    assert labels.labels_in(table, ["label"], labels.REGRESSION).numbers(table) == [1.0, 2.0, 3.0]
    halves = read("a.jsonl", rows(0.5, 1.5))
    assert labels.labels_in(halves, ["label"], labels.SINGLE).names == ("0.5", "1.5")

    def told(problem):
        return lambda table: labels.labels_in(table, ["label"], problem).numbers(table)

    assert says("a.jsonl", rows("a", "b"), told(labels.REGRESSION)) == (
        "a.jsonl, line 1, column 'label': expected a number, as the labels are a regression's, found 'a'"
    )
    assert says("a.jsonl", rows("a", "b"), told(labels.MULTI)) == (
        "a.jsonl, line 1, column 'label': expected a list of labels, found 'a'"
    )


def test_a_column_for_each_class(read, says):
    content = [["text", "toxic", "rude"], ["x", "1", "0"], ["y", "True", "no"], ["z", "0.0", "1.0"]]
    table = read("a.csv", content)
    found = labels.labels_in(table, ["toxic", "rude"])
    assert (found.problem, found.names) == (labels.MULTI, ("toxic", "rude"))
    assert found.numbers(table) == [[1, 0], [1, 0], [0, 1]]
    other_order = found.ordered_as({"rude": 0, "toxic": 1})
    assert other_order.numbers(table) == [[0, 1], [0, 1], [1, 0]]
    config = BertConfig(id2label={0: "rude", 1: "toxic"}, problem_type=labels.MULTI)
    assert labels.labels_of(config, ["toxic", "rude"]).numbers(table) == [[0, 1], [0, 1], [1, 0]]
    with pytest.raises(UserError, match="must name the model's classes, rude, toxic; got toxic, text"):
        labels.labels_of(config, ["toxic", "text"])
    content[2][1] = ""
    assert says("a.csv", content, found.numbers) == (
        "a.csv, line 3, column 'toxic': expected 0 or 1, as there is a column for each class, found ''"
    )
    assert says("a.csv", content, lambda table: labels.labels_in(table, ["toxic", "rude"], labels.SINGLE)) == (
        "--problem_type single_label_classification needs one label column, got toxic, rude"
    )


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (("a", "a"), "a.jsonl, column 'label': every label is 'a': one class, nothing to learn"),
        (("a", None, "b"), "a.jsonl, line 2, column 'label': no label; give it one, or leave the row out"),
        ((0.5, float("nan")), "a.jsonl, line 2, column 'label': no label; give it one, or leave the row out"),
        (("a", "b", " "), "a.jsonl, line 3, column 'label': no label; give it one, or leave the row out"),
        (({"x": 1}, {"x": 2}), "a.jsonl, line 1, column 'label': expected the name or number of a class, found an object: "
         "{'x': 1}"),
        (("a", ["a", "b"]), "a.jsonl, line 2, column 'label': expected the name or number of a class, found a list: "
         "['a', 'b']"),
        ((["a"], [["b"]]), "a.jsonl, line 2, column 'label': expected the name or number of a class, found a list: ['b']"),
        ((["a"], ["a"]), "a.jsonl, column 'label': every row has the label 'a': nothing to learn"),
        (([], []), "a.jsonl, column 'label': every list of labels is empty, nothing to learn"),
    ],
)  # fmt: skip
def test_what_is_said_of_training_labels(says, cells, sentence):
    assert says("a.jsonl", rows(*cells), lambda table: labels.labels_in(table, ["label"])) == sentence


SINGLE = labels.Labels(labels.SINGLE, ("bad", "good"))


@pytest.mark.parametrize(
    ("trained", "cell", "sentence"),
    [
        (SINGLE, "medium", "the label 'medium' is none of those trained on: bad, good"),
        (SINGLE, "Good", "the label 'Good' is none of those trained on: bad, good; did you mean 'good'?"),
        (SINGLE, None, "no label; give it one, or leave the row out"),
        (labels.Labels(labels.SINGLE, ("1", "2")), 0.5, "the label '0.5' is none of those trained on: 1, 2"),
        (labels.Labels(labels.REGRESSION), None, "expected a number, as the labels are a regression's, found nothing"),
        (labels.Labels(labels.MULTI, ("a", "b")), "a", "expected a list of labels, found 'a'"),
        (labels.Labels(labels.MULTI, ("a", "b")), ["a", "c"], "the label 'c' is none of those trained on: a, b"),
        (labels.Labels(labels.MULTI, ("LABEL_0", "LABEL_1"), vectors=True), [0, 1, 1],
         "expected 2 numbers 0 or 1, one for each class, found [0, 1, 1]"),
    ],
)  # fmt: skip
def test_what_is_said_of_labels_to_compare_with(says, trained, cell, sentence):
    assert says("a.jsonl", rows(cell), trained.numbers) == f"a.jsonl, line 1, column 'label': {sentence}"


def test_numbers_of_the_model(caplog):
    assert labels.order_of_labels({"B": 0, "a": 1}, ["a", "b"]) == {"a": 1, "b": 0}
    assert labels.order_of_labels({"LABEL_0": 0, "LABEL_1": 1}, ["a", "b"]) == {"a": 0, "b": 1}
    assert SINGLE.ordered_as({"good": 0, "bad": 1}).names == ("good", "bad")
    labels.warn_of_other_classes({"LABEL_0": 0, "LABEL_1": 1}, ["a", "b"])
    labels.warn_of_other_classes({"B": 0, "a": 1}, ["a", "b"])
    assert caplog.text == ""
    labels.warn_of_other_classes({"positive": 0, "negative": 1}, ["a", "b"])
    assert "trained on the classes positive, negative; the data has a, b, which take their places" in caplog.text


def test_labels_of_a_model_without_training_data(read):
    vectors = BertConfig(num_labels=2, problem_type=labels.MULTI)
    table = read("a.jsonl", rows([0, 1], [0, 1]))
    assert labels.labels_of(vectors, ["label"]).numbers(table) == [[0, 1], [0, 1]]
    named = BertConfig(id2label={0: "b", 1: "a"}, problem_type=labels.MULTI)
    assert labels.labels_of(named, ["label"]).numbers(read("b.jsonl", rows(["a"]))) == [[0, 1]]
    assert labels.labels_of(BertConfig(num_labels=1), ["label"]).problem == labels.REGRESSION
    assert labels.labels_of(BertConfig(id2label={0: "b", 1: "a"}), ["label"]).names == ("b", "a")


def test_data_of_the_hub():
    features = {"text": Value("string"), "label": ClassLabel(names=["bad", "good", "never"])}
    data = Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=Features(features))
    table = tables.table_of(data, "train")
    found = labels.labels_in(table, ["label"])
    assert (found.names, found.numbers(table)) == (("bad", "good", "never"), [1, 0])
    hidden = tables.table_of(
        Dataset.from_dict({"text": ["x"], "label": [-1]}, features=Features(features)), "validation"
    )
    with pytest.raises(UserError, match=r"the validation data, row 1, column 'label': the label is hidden \(-1\)"):
        found.numbers(hidden)
    features["label"] = List(features["label"])
    several = tables.table_of(
        Dataset.from_dict({"text": ["x"], "label": [[0, 1]]}, features=Features(features)), "train"
    )
    found = labels.labels_in(several, ["label"])
    assert (found.problem, found.numbers(several)) == (labels.MULTI, [[1, 1, 0]])
    with pytest.raises(UserError, match="the test data is empty"):
        tables.table_of(data.select([]), "test")


def test_predictions_for_people():
    assert labels.Labels(labels.REGRESSION).spelled(0.12345) == "0.123"
    assert SINGLE.spelled(1) == "good"
    several = labels.Labels(labels.MULTI, ("ä", "b, c", "d"))
    assert [several.spelled(guess) for guess in ([1, 1, 0], [0, 0, 0])] == ['["ä", "b, c"]', "[]"]
    assert [each.describe() for each in (labels.Labels(labels.REGRESSION), SINGLE, several)] == [
        "numbers with fractions, a regression",
        "one a row, of bad, good",
        "several a row, of ä, b, c, d",
    ]
