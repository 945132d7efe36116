"""Learning from a dense teacher in the examples: its options change the outcome, and a teacher that does not fit is refused."""

import pytest
from datasets import Dataset
from example_runs import options
from safetensors.torch import load_file

import run_clm
import run_glue
import teachers
import texts
from conftest import tiny_bert
from shared import HubArguments, UserError

pytestmark = pytest.mark.usefixtures("logging_as_before")

ROWS = "sentence,label\n" + "a great story,good\na dull film,bad\n" * 8


@pytest.fixture
def train(tmp_path):
    """Runs a step of run_glue.py on a tiny model; gives the folder with the outcome."""
    text = Dataset.from_dict({"text": ["a great story", "a dull film"]})
    texts.train_tokenizer(text, 300, run_clm.SPECIAL_TOKENS).save_pretrained(tmp_path / "model")
    tiny_bert(vocab_size=300).bert.save_pretrained(tmp_path / "model")
    (tmp_path / "train.csv").write_text(ROWS)

    def run(out, *flags, **more):
        settings = {"model_name_or_path": tmp_path / "model", "train_file": tmp_path / "train.csv", "max_steps": 1}
        settings |= {"sparsity": 0.5, "learning_rate": 1e-2, "output_dir": tmp_path / out} | more
        run_glue.main(options(tmp_path, "--do_train", *flags, **settings))
        return tmp_path / out

    return run


def test_a_teacher_and_its_options_change_the_outcome(train):
    teacher = train("teacher", "--dense")
    outcomes = []
    for number, more in enumerate(
        (
            {},
            {"teacher_name_or_path": teacher},
            {"teacher_name_or_path": teacher, "distillation_temperature": 9.0},
            {"teacher_name_or_path": teacher, "distillation_weight": 0.9},
            {"teacher_name_or_path": teacher, "distillation_hidden_weight": 2.0},
        )
    ):
        outcomes.append(load_file(train(str(number), **more) / "model.safetensors"))
    for i, a in enumerate(outcomes):
        assert all(any((a[name] != b[name]).any() for name in a) for b in outcomes[:i])


def test_which_revision_of_the_teacher(monkeypatch):
    """Its own, not the model's."""
    asked = []

    class Auto:
        @staticmethod
        def from_pretrained(name, **options):
            asked.append((name, options["revision"]))
            return tiny_bert()

    options = teachers.TeacherArguments(teacher_name_or_path="teacher", teacher_revision="v2")
    teachers.teaching(Auto, options, tiny_bert(), HubArguments(model_revision="v1"))
    assert asked == [("teacher", "v2")]


def test_teachers_that_do_not_fit(train, tmp_path):
    teacher = train("teacher", "--dense")
    with pytest.raises(UserError, match="a teacher teaches sparse models only: leave out --teacher_name_or_path"):
        train("out", "--dense", teacher_name_or_path=teacher)
    with pytest.raises(UserError, match="--distillation_hidden_weight needs --teacher_name_or_path"):
        train("out", distillation_hidden_weight=1.0)
    with pytest.raises(UserError, match="the teacher cannot be loaded: "):
        train("out", teacher_name_or_path=tmp_path / "nobody")
    with pytest.raises(UserError, match=r"distillation_weight in \(0, 1\]"):
        train("out", teacher_name_or_path=teacher, distillation_weight=2.0)
    (tmp_path / "other.csv").write_text(ROWS.replace("bad", "poor"))
    with pytest.raises(UserError, match="the teacher's labels must be the model's, good, poor; they are bad, good: "):
        train("out", teacher_name_or_path=teacher, train_file=tmp_path / "other.csv")
    (tmp_path / "numbers.csv").write_text(ROWS.replace("bad", "0.5").replace("good", "1.5"))
    with pytest.raises(UserError, match="a regression has no classes"):
        train("out", teacher_name_or_path=teacher, train_file=tmp_path / "numbers.csv")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
