"""Uploading and downloading through a Hub on this machine, by the real client; and what a card says."""

import re

import huggingface_hub
import pytest
import torch
from hub_server import FakeHub
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback
from transformers.utils import hub as transformers_hub

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigLCallback, SRigLConfig, densify, sparsify, sparsity_report
from hf_srigl.bench.speed import Speed, measure_speed, speed_of
from hf_srigl.files.card import CARD_START, PICTURE, add_card_section, is_edited, write_card

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub calls httpx so

AUTO = AutoModelForSequenceClassification
CONFIG = SRigLConfig(sparsity=0.75, update_every=2, gamma_sal=None)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = FakeHub()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(transformers_hub, "_hf_api", None)  # it remembers the endpoint
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)  # between tries
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.close()
    transformers_hub._hf_api = None


@pytest.fixture
def no_picture(monkeypatch):
    """As if matplotlib were not installed."""
    monkeypatch.setattr("hf_srigl.training.trainer.find_spec", lambda name: None)


def sparse_trainer(folder, **overrides):
    args = training_args(folder, eval_strategy="steps", eval_steps=3, **overrides)
    return SparseTrainer(tiny_bert(), args, train_dataset=Toy(), eval_dataset=Toy(), srigl_config=CONFIG)


def card_of(hub, repo):
    return ModelCard(hub.files(repo)["README.md"].decode())


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_model_goes_to_the_hub_and_comes_back(hub):
    model = sparsify(tiny_bert(), CONFIG)
    model.config._name_or_path = "google-bert/bert-base-uncased"  # as from_pretrained leaves it
    model.push_to_hub("tiny", private=True)
    assert hub.repos["somebody/tiny"]["private"]
    assert set(hub.files("somebody/tiny")) == {"README.md", "config.json", "model.safetensors"}
    data = card_of(hub, "somebody/tiny").data
    assert (data.library_name, data.base_model) == ("transformers", "google-bert/bert-base-uncased")
    assert set(data.tags) == {"srigl", "sparse"}
    assert same(AUTO.from_pretrained("somebody/tiny"), model)


def test_a_card_edited_on_the_hub_keeps_its_text(hub):
    model = sparsify(tiny_bert(), CONFIG)
    model.push_to_hub("tiny")
    files = hub.files("somebody/tiny")
    files["README.md"] = files["README.md"].replace(b"# Model Card for Model ID", b"# Written by a person")
    model.push_to_hub("tiny")
    text = files["README.md"].decode()
    assert "# Written by a person" in text
    assert text.count("## Sparse model") == text.count(CARD_START) == 1


@pytest.mark.parametrize("where", ["PUT /blobs", "/commit/"])
def test_an_upload_that_fails_half_way_and_its_retry(where, hub, caplog):
    model = sparsify(tiny_bert(), CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hub.fail = [where]
    with caplog.at_level("ERROR"), pytest.raises(Exception, match=r"403|model\.safetensors"):
        model.push_to_hub("tiny")
    assert "somebody/tiny failed" in caplog.text
    assert "push_to_hub again" in caplog.text
    assert hub.files("somebody/tiny") == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    blobs = len(hub.blobs)
    hub.fail = []
    sent = len(hub.sent)
    model.push_to_hub("tiny")
    assert same(AUTO.from_pretrained("somebody/tiny"), model)
    puts = sum(request.startswith("PUT") for request in hub.sent[sent:])
    assert puts == 1 - blobs  # what had arrived was not sent again


def test_a_trainer_pushes_its_training(hub, tmp_path):
    """Metadata, picture, section, draft; then again with new numbers in the draft."""
    trainer = sparse_trainer(tmp_path / "run", hub_model_id="lab/sparse", hub_private_repo=True)
    trainer.train()
    trainer.push_to_hub(dataset_tags="toy", dataset="Toy", tasks="text-classification", finetuned_from="lab/dense")
    files = hub.files("lab/sparse")
    assert hub.repos["lab/sparse"]["private"]
    assert {"README.md", "config.json", "model.safetensors", PICTURE} <= set(files)
    card = card_of(hub, "lab/sparse")
    assert (card.data.library_name, card.data.base_model, card.data.datasets) == ("transformers", "lab/dense", ["toy"])
    assert {"srigl", "sparse", "generated_from_trainer"} <= set(card.data.tags)
    assert f"![Fan-in and active neurons of each layer during training]({PICTURE})" in card.text
    assert files[PICTURE].startswith(b"\x89PNG")
    report = sparsity_report(trainer.model)
    assert f"| {report.parameters:,} | {report.dense_parameters:,} |" in card.text
    assert str(report) in card.text
    assert "forward pass" not in card.text  # nothing was measured

    loss = re.search(r"- Loss: (.*)", card.text).group(1)
    for parameter in trainer.model.parameters():
        parameter.data.mul_(3)
    trainer.evaluate()
    trainer.push_to_hub()
    assert re.search(r"- Loss: (.*)", card_of(hub, "lab/sparse").text).group(1) != loss


def test_metrics_reach_the_card(no_picture, hub, tmp_path):
    trainer = sparse_trainer(tmp_path / "run")
    trainer.compute_metrics = lambda prediction: {
        "accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())
    }
    trainer.train()
    trainer.push_to_hub(dataset_tags="toy", dataset="Toy", tasks="text-classification")
    data = card_of(hub, "somebody/run").data
    assert data.metrics == ["accuracy"]
    (result,) = [result for result in data.eval_results if result.metric_type == "accuracy"]
    assert 0 <= result.metric_value <= 1


@pytest.mark.parametrize("edited", ["here", "on the Hub", "nowhere"])
def test_a_trainer_keeps_a_card_that_somebody_edited(edited, no_picture, hub, tmp_path):
    trainer = sparse_trainer(tmp_path / "run")
    trainer.push_to_hub()
    path = tmp_path / "run" / "README.md"
    mine = path.read_text().replace("More information needed", "Written by a person", 1)
    if edited == "here":
        path.write_text(mine)
    elif edited == "on the Hub":
        hub.files("somebody/run")["README.md"] = mine.encode()
    trainer.train()
    trainer.push_to_hub()
    text = hub.files("somebody/run")["README.md"].decode()
    assert text == path.read_text()
    assert ("Written by a person" in text) == (edited != "nowhere")
    assert is_edited(text) == (edited != "nowhere")
    assert text.count("## Sparse model") == 1
    assert str(sparsity_report(trainer.model)) in text  # the section is up to date
    assert PICTURE not in text


def test_a_draft_stays_a_draft_when_a_model_is_pushed_over_it(no_picture, hub, tmp_path):
    trainer = sparse_trainer(tmp_path / "run")
    trainer.train()
    trainer.push_to_hub(dataset_tags="toy", dataset="Toy", tasks="text-classification")
    trainer.model.push_to_hub("run")
    text = hub.files("somebody/run")["README.md"].decode()
    assert not is_edited(text)
    assert is_edited(text.replace("tags:", "license: mit\ntags:"))  # metadata are somebody's words too


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints", "end"])
def test_uploads_during_training(strategy, no_picture, hub, tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 3, "push_to_hub": True, "hub_always_push": True}
    trainer = sparse_trainer(tmp_path / "run", hub_strategy=strategy, **arguments)
    trainer.train()
    files = hub.files("somebody/run")
    if strategy == "end":
        assert files == {}
    else:
        assert b"import hf_srigl" in files["README.md"]
        assert "model.safetensors" in files
    wanted = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-3", "checkpoint-6"]}.get(strategy, [])
    assert sorted({name.split("/")[0] for name in files if "/" in name}) == wanted
    for folder in wanted:
        assert {f"{folder}/srigl_state.safetensors", f"{folder}/optimizer.pt"} <= set(files)


def test_training_goes_on_from_a_checkpoint_on_the_hub(no_picture, hub, tmp_path, recwarn):
    arguments = {"save_strategy": "steps", "save_steps": 3, "push_to_hub": True, "hub_always_push": True}
    whole = sparse_trainer(tmp_path / "run", hub_strategy="all_checkpoints", **arguments)
    whole.train()
    checkpoint = tmp_path / "downloaded" / "checkpoint-3"
    for name, content in hub.files("somebody/run").items():
        if name.startswith("checkpoint-3/"):
            (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
            (checkpoint.parent / name).write_bytes(content)
    resumed = sparse_trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same(resumed.model, whole.model)
    assert load_file(checkpoint / "srigl_state.safetensors").keys()


class Refuse(TrainerCallback):
    """From step 4 on the Hub refuses what it is told to."""

    def __init__(self, hub, requests):
        self.hub, self.requests = hub, requests

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.hub.fail = self.requests


@pytest.mark.parametrize(("requests", "status"), [("/commit/", 403), ("/", 401)], ids=["the commit", "everything"])
def test_an_upload_that_fails_during_training_does_not_stop_it(requests, status, no_picture, hub, tmp_path, caplog):
    hub.status = status
    arguments = {"save_strategy": "steps", "save_steps": 2, "push_to_hub": True, "hub_always_push": True}
    trainer = sparse_trainer(tmp_path / "run", **arguments)
    trainer.add_callback(Refuse(hub, [requests]))
    with caplog.at_level("WARNING"):
        trainer.train()
    assert "An upload to somebody/run during training failed" in caplog.text
    assert str(status) in caplog.text
    assert ("The model card was not renewed" in caplog.text) == (requests == "/")
    assert trainer.state.global_step == 6
    assert (tmp_path / "run" / "checkpoint-6" / "model.safetensors").is_file()

    other = sparse_trainer(tmp_path / "other")
    other.train()
    assert same(trainer.model, other.model)  # the failure changed nothing

    with pytest.raises(huggingface_hub.errors.HfHubHTTPError):
        trainer.push_to_hub()
    assert "call trainer.push_to_hub() again" in caplog.text
    assert same(trainer.model, other.model)
    hub.fail = []
    trainer.push_to_hub()
    assert same(AUTO.from_pretrained("somebody/run"), other.model)


def test_a_stock_trainer_s_card_gets_its_section_from_the_model(hub, tmp_path):
    """The stock Trainer writes and uploads its card in one go; the tags are there, and pushing the model adds the rest."""
    model = sparsify(tiny_bert(), CONFIG)
    trainer = Trainer(model, training_args(tmp_path / "run"), train_dataset=Toy(), callbacks=[SRigLCallback()])
    trainer.train()
    trainer.push_to_hub()
    assert {"srigl", "sparse"} <= set(card_of(hub, "somebody/run").data.tags)
    assert CARD_START not in card_of(hub, "somebody/run").text
    model.push_to_hub("run")
    text = card_of(hub, "somebody/run").text
    assert CARD_START in text
    assert "Training hyperparameters" in text


# --- what a card says ------------------------------------------------------------------------------------------------


def test_a_time_is_in_the_card_only_after_it_was_measured():
    model = sparsify(tiny_bert(), CONFIG)
    assert "forward pass" not in add_card_section("# Mine", model)
    speed = measure_speed(model, {"input_ids": torch.zeros(2, 8, dtype=torch.long)}, seconds=0, at_least=2)
    assert speed_of(model) == speed
    assert speed.inputs == "input_ids 2 x 8"
    assert "1 thread, float32" in speed.machine
    text = add_card_section("# Mine", model)
    assert f"| forward pass, ms | {1000 * speed.condensed:.1f} | {1000 * speed.dense:.1f} |" in text
    assert speed.caption() in text
    assert model.training
    densify(model)
    assert speed_of(model) is None


def test_the_numbers_of_a_card_are_those_of_the_measurement():
    model = sparsify(tiny_bert(), CONFIG)
    model.__dict__["srigl_speed"] = Speed(0.004, 0.016, "x 1", "m", "d")
    text = add_card_section("", model)
    assert "| forward pass, ms | 4.0 | 16.0 | 0.25 |\n\nForward pass: x 1; m; median, measured d.\n" in text


def test_a_measurement_says_both_times_and_their_ratio():
    assert Speed(0.004, 0.016, "x 1", "m", "d").sentence() == (
        "One forward pass takes 4 ms, 0.25 of the dense model's 16 ms (x 1; m; median, measured d)."
    )
    assert "takes 0.0303 ms, 1.21 of the dense model's 0.025 ms" in Speed(3.03e-5, 2.5e-5, "x 1", "m", "d").sentence()


def test_measuring_leaves_the_model_as_it_was_even_if_it_cannot_run():
    model = sparsify(tiny_bert(), CONFIG)
    with pytest.raises(ValueError, match="input_ids"):
        measure_speed(model, {"pixels": torch.zeros(1)})
    assert model.training
    assert speed_of(model) is None
    with pytest.raises(ValueError, match="no condensed layer"):
        measure_speed(tiny_bert(), {})


def test_metadata_that_is_there_stays():
    card = "---\nlicense: mit\nbase_model: a/b\nlibrary_name: peft\ntags:\n- mine\n---\n\n# Mine\n"
    model = sparsify(tiny_bert(), CONFIG)
    model.config._name_or_path = "c/d"
    data = ModelCard(add_card_section(card, model)).data
    assert (data.license, data.base_model, data.library_name) == ("mit", "a/b", "peft")
    assert data.tags == ["mine", "srigl", "sparse"]
    text = add_card_section(card, model)
    assert add_card_section(text, model) == text


@pytest.mark.parametrize("name", ["", "here", "a b", "lab/repo", "/tmp/x/y"])
def test_only_a_name_on_the_hub_is_a_base_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    model = sparsify(tiny_bert(), CONFIG)
    model.config._name_or_path = name
    assert ModelCard(add_card_section("# Mine", model, "lab/repo")).data.base_model is None


def test_a_picture_is_shown_if_it_is_there(tmp_path):
    model, path = sparsify(tiny_bert(), CONFIG), tmp_path / "README.md"
    path.write_text("# Mine")
    write_card(model, path)
    assert PICTURE not in path.read_text()
    (tmp_path / PICTURE).write_bytes(b"")
    write_card(model, path)
    assert path.read_text().count(f"]({PICTURE})") == 1
    assert path.read_text().count("# Mine") == 1
