"""The pictures: what is drawn is what the reports say; the Trainer leaves them; the history survives a checkpoint."""

import dataclasses
import json
import logging
import os
import sys

import pytest
from torch import nn
from transformers import Trainer

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigLCallback, SRigLConfig, sparsify, sparsity_report
from hf_srigl.cli import main
from hf_srigl.plots import Measure, plot_comparison, plot_layers, plot_topology, style
from hf_srigl.plots.style import kind_labels
from hf_srigl.plots.training import finding, topology_series
from hf_srigl.rule.updates import LayerUpdate, UpdateReport
from hf_srigl.training.history import History

CONFIG = SRigLConfig(sparsity=0.75, update_every=2, gamma_sal=0.9, init="random")


def update(name, fan_in, active, neurons=10):
    return LayerUpdate(name=name, dropped=1, grown=1, fan_in=fan_in, active=active, neurons=neurons, itop=0.2)


def report(step, *rows, active_neurons=1.0):
    return UpdateReport(step, 0.3, rows, sparsity=0.9, active_neurons=active_neurons, itop=0.2)


# fc1 of two blocks loses neurons, q never does; the second block's layers are updated later (stagger)
REPORTS = [
    report(5, update("0.fc1", 4, 5), update("0.q", 2, 10)),
    report(7, update("1.fc1", 5, 4), update("1.q", 2, 10)),
    report(10, update("0.fc1", 8, 2), update("0.q", 2, 10), active_neurons=0.75),
]


@pytest.fixture
def figure(monkeypatch):
    """The figure that is about to be drawn on."""
    made = style.new_figure()
    monkeypatch.setattr(style, "new_figure", lambda *size: made)
    return made


def drawn(axes):
    return sorted((list(line.get_xdata()), [round(float(y), 6) for y in line.get_ydata()]) for line in axes.lines)


def texts(axes):
    return {text.get_text(): text for text in axes.texts}


def test_every_layer_is_a_line_of_fan_ins_and_one_of_active_neurons(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png", total_steps=20)
    fan_ins, shares, changes = figure.axes
    assert drawn(fan_ins) == [([5, 10, 20], [2, 2, 2]), ([5, 10, 20], [4, 8, 8]), ([7, 20], [2, 2]), ([7, 20], [5, 5])]
    assert drawn(shares) == [
        ([5, 10, 20], [50, 20, 20]), ([5, 10, 20], [100, 100, 100]), ([7, 20], [40, 40]), ([7, 20], [100, 100]),
    ]  # fmt: skip
    assert all(line.get_drawstyle() == "steps-post" for axes in (fan_ins, shares) for line in axes.lines)
    # new after each update: 2 of 4*5 + 2*10, 2 of 5*4 + 2*10, 2 of 8*2 + 2*10 connections; ITOP is 20% throughout
    assert drawn(changes) == [([5, 7, 10], [5, 5, 5.555556]), ([5, 7, 10, 20], [20, 20, 20, 20])]


def test_without_total_steps_the_picture_ends_at_the_last_update(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png")
    assert all(axes.get_xlim() == (0, 10) for axes in figure.axes)


def test_start_is_step_0():
    model = sparsify(nn.ModuleDict({"fc1": nn.Linear(20, 10)}), SRigLConfig(sparsity=0.9))
    series = topology_series([report(5, update("fc1", 4, 5))], start=sparsity_report(model))
    assert series == {"fc1": [(0, 2, 1.0), (5, 4, 0.5)]}
    assert topology_series([report(5, update("fc1", 4, 5))]) == {"fc1": [(5, 4, 0.5)]}
    resumed = topology_series([report(5, update("fc1", 4, 5))], start=sparsity_report(model), start_step=3)
    assert resumed == {"fc1": [(3, 2, 1.0), (5, 4, 0.5)]}


def test_one_label_and_colour_for_each_kind_and_grey_for_what_is_never_ablated(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png")
    for axes in figure.axes[:2]:
        labels = texts(axes)
        assert set(labels) == {"fc1", "q"}
        assert labels["q"].get_color() == style.GREY != labels["fc1"].get_color()
        assert {line.get_color() for line in axes.lines} == {label.get_color() for label in labels.values()}


def test_steady_kinds_that_end_alike_share_a_label(figure, tmp_path):
    rows = [update(f"0.{name}", 2, 10) for name in "qkv"]
    plot_topology([report(5, *rows, update("0.o", 4, 5))], tmp_path / "picture.png")
    assert set(texts(figure.axes[0])) == {"q, k, v", "o"}


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_file_is_what_its_ending_says(tmp_path, ending, magic):
    plot_topology(REPORTS, tmp_path / f"picture.{ending}")
    assert (tmp_path / f"picture.{ending}").read_bytes().startswith(magic)


def test_the_title_is_the_finding(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png")
    title, subtitle = (text.get_text() for text in figure.texts)
    assert title == finding(REPORTS) == "25% of all neurons were ablated; those that stay took over their weights"
    assert subtitle.startswith("90.0% of the weights are zero; 3 topology updates, the last at step 10")
    assert "No neuron" in finding(REPORTS[:1])


def test_a_sparsity_that_changes_is_told(figure, tmp_path):
    plot_topology([dataclasses.replace(REPORTS[0], sparsity=0.5), REPORTS[1]], tmp_path / "picture.png")
    assert figure.texts[1].get_text().startswith("zeros went from 50.0% of the weights to 90.0%")


def test_a_title_of_ones_own(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png", title="mine")
    assert figure.texts[0].get_text() == "mine"


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="made no topology update"):
        plot_topology([], tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[plots\]'"):
        plot_topology(REPORTS, tmp_path / "picture.png")


def test_labels_are_the_shortest_endings_that_tell_kinds_apart():
    bert = ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]
    names = [f"bert.encoder.layer.{i}.{name}" for i in range(2) for name in bert]
    labels = kind_labels(names)
    assert list(labels) == names
    assert [labels[name] for name in names[:4]] == [
        "query", "attention.output.dense", "intermediate.dense", "layer.output.dense",
    ]  # fmt: skip
    assert [labels[name] for name in names[4:]] == [labels[name] for name in names[:4]]
    assert kind_labels(["0", "2"]) == {"0": "0", "2": "2"}  # nn.Sequential has nothing but numbers


@pytest.mark.parametrize("values", [[1, 1, 1], [10, 9.9, 0], [5], [], [0, 0.5, 10, 9.8, 4]])
def test_labels_keep_apart_in_order_and_below_the_top(values):
    placed = style.spread([float(v) for v in values], gap=1.0, top=10.0)
    order = sorted(range(len(values)), key=values.__getitem__)
    inside = [placed[i] for i in order]
    assert all(upper - lower >= 1.0 - 1e-9 for lower, upper in zip(inside, inside[1:], strict=False))
    assert all(0 <= p <= 10.0 for p in placed)


def test_labels_move_no_more_than_they_must():
    assert style.spread([5.0], gap=1.0, top=10.0) == [5.0]
    assert style.spread([3.0, 1.0, 3.0], gap=1.0, top=10.0) == [2.5, 1.0, 3.5]  # half up, half down
    assert style.spread([10.0, 10.0], gap=1.0, top=10.0) == [9.0, 10.0]


def test_long_labels_lose_their_middle_but_not_what_tells_them_apart():
    t5 = ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.1.DenseReluDense.wi"]
    t5 += ["decoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.1.EncDecAttention.q"]
    t5 += ["decoder.block.0.layer.2.DenseReluDense.wi"]
    assert list(kind_labels(t5).values()) == [
        "encoder…q", "encoder…wi", "decoder…SelfAttention.q", "EncDecAttention.q", "decoder…wi",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_a_label_fits_beside_its_panel(size):
    assert all(len(style.in_few_words([letter * size for letter in "abcdef"[:number]])) <= 30 for number in range(1, 7))


def test_labels_that_are_too_many_are_put_together():
    figure = style.new_figure()
    axes = figure.subplots()
    axes.set_ylim(0, 100)
    style.label_ends(axes, 1.0, {f"kind{i}": (3.0 * i, style.GREY) for i in range(30)})
    heights = sorted(text.xy[1] for text in axes.texts)
    assert len(heights) == style.MOST_LABELS
    assert all(above - below >= 9.99 for below, above in zip(heights, heights[1:], strict=False))


# --- the layers of a model -------------------------------------------------------------------------------------------


def blocks(number):
    """A model of `number` blocks with three layers each, and a head that is a layer of its own kind."""
    block = [
        nn.ModuleDict({"q": nn.Linear(16, 8), "k": nn.Linear(16, 8), "fc": nn.Linear(8, 32)}) for _ in range(number)
    ]
    return sparsify(
        nn.ModuleDict({"blocks": nn.ModuleList(block), "top": nn.Linear(16, 4)}), SRigLConfig(sparsity=0.75)
    )


def test_few_layers_are_bars_with_names_and_numbers(figure, tmp_path):
    model = blocks(2)
    plot_layers(sparsity_report(model), tmp_path / "layers.png")
    sparsity, fan_in, active = figure.axes
    assert [bar.get_width() for bar in fan_in.patches] == [4, 4, 2, 4, 4, 2, 4]
    assert [bar.get_width() for bar in sparsity.patches] == [75] * 7
    assert [text.get_text() for text in fan_in.texts][:3] == ["4 of 16", "4 of 16", "2 of 8"]
    assert [text.get_text() for text in active.texts][:3] == ["8 of 8", "8 of 8", "32 of 32"]
    names = [label.get_text() for label in sparsity.get_yticklabels()]
    assert names == [row.name for row in sparsity_report(model).rows]
    assert figure.texts[0].get_text() == "75.0% of the weights in 7 sparse layers are zero"


def test_many_layers_are_lines_and_what_agrees_shares_one(figure, tmp_path):
    plot_layers(sparsity_report(blocks(8)), tmp_path / "layers.png")
    _, fan_in, _ = figure.axes
    # q and k agree; fc; the way from the last of one "top" to its label, and its point
    assert drawn(fan_in) == [
        ([1], [4]), (list(range(1, 9)), [2] * 8), (list(range(1, 9)), [4] * 8), ([1, 8.5], [4, 4]),
    ]  # fmt: skip
    assert set(texts(fan_in)) == {"fc", "q, k", "top"}
    assert texts(fan_in)["top"].get_color() == style.GREY, "a layer without others of its kind"
    assert len({text.get_color() for text in texts(fan_in).values()}) == 3


def test_a_dense_model_has_no_layers_to_draw(tmp_path):
    with pytest.raises(ValueError, match="not condensed"):
        plot_layers(sparsity_report(nn.Linear(2, 2)), tmp_path / "layers.png")


# --- two models ------------------------------------------------------------------------------------------------------


def test_every_measure_has_a_panel_with_both_numbers_and_their_ratio(figure, tmp_path):
    measures = [Measure("accuracy", 0.8, 0.6, "{:.0%}"), Measure("size", 4, 1, "{:.1f} MB"), Measure("zeros", 0, 5)]
    measures.append(Measure("time", 2, 1, "{:.0f} s"))
    plot_comparison(measures, tmp_path / "twins.png", names=("dense", "90%"), title="mine")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["accuracy", "size", "zeros", "time"]
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [[0.8, 0.6], [4, 1], [0, 5], [2, 1]]
    said = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert said[:3] == [["80%", "60%  (0.75 of dense)"], ["4.0 MB", "1.0 MB  (0.25 of dense)"], ["0", "5"]]
    with pytest.raises(ValueError, match="no measure"):
        plot_comparison([], tmp_path / "twins.png", title="mine")
    with pytest.raises(ValueError, match="zeros: expected numbers from 0 up, got 0 and -1"):
        plot_comparison([Measure("zeros", 0, -1)], tmp_path / "twins.png", title="mine")


# --- what the Trainer leaves -----------------------------------------------------------------------------------------


def make(folder, *, config=CONFIG, srigl_pictures=True, **arguments):
    model = tiny_bert(num_hidden_layers=1)
    args = training_args(folder, logging_strategy="no", **arguments)
    options = {"srigl_config": config, "srigl_pictures": srigl_pictures}
    return SparseTrainer(model=model, args=args, train_dataset=Toy(), **options)


def test_the_trainer_leaves_pictures_and_history_beside_the_model(tmp_path, pictures):
    trainer = make(tmp_path / "out")
    start = sparsity_report(trainer.model)
    assert trainer.topology_reports == []
    trainer.train()
    assert sorted(os.listdir(tmp_path / "out")) == ["layers.png", "srigl_history.json", "topology.png"]
    assert (tmp_path / "out" / "topology.png").read_bytes().startswith(b"\x89PNG")
    assert [report.step for report in trainer.topology_reports] == [2, 4]
    history = History.load(tmp_path / "out" / "srigl_history.json")
    assert history == History(start, 0, trainer.topology_reports)


def test_a_stock_trainer_with_the_callback_leaves_them_too(tmp_path, pictures):
    args = training_args(tmp_path / "out", logging_strategy="no")
    model = sparsify(tiny_bert(num_hidden_layers=1), CONFIG)
    Trainer(model, args, train_dataset=Toy(), callbacks=[SRigLCallback()]).train()
    assert (tmp_path / "out" / "topology.png").is_file()


def test_pictures_can_be_turned_off(tmp_path, pictures):
    trainer = make(tmp_path / "out", srigl_pictures=False)
    trainer.train()
    assert os.listdir(tmp_path / "out") == []
    assert len(trainer.topology_reports) == 2


@pytest.mark.parametrize("is_main", [True, False])
def test_only_the_main_process_draws(tmp_path, pictures, is_main):
    trainer = make(tmp_path / "out")
    trainer.state.max_steps, trainer.state.is_world_process_zero = 6, is_main
    now = (trainer.args, trainer.state, trainer.control, trainer.model)
    trainer._srigl_callback.on_train_begin(*now, trainer.create_optimizer())
    trainer._srigl_callback.on_train_end(*now)
    assert (tmp_path / "out" / "layers.png").is_file() == is_main


def test_a_static_topology_leaves_the_layers_only(tmp_path, pictures):
    trainer = make(tmp_path / "out", config=dataclasses.replace(CONFIG, update_every=None))
    trainer.train()
    assert sorted(os.listdir(tmp_path / "out")) == ["layers.png", "srigl_history.json"]


@pytest.fixture
def warned(monkeypatch):
    """What the callback's logger warns of."""
    messages = []
    monkeypatch.setattr(logging.getLogger("hf_srigl.training.callback"), "warning", messages.append)
    return messages


def test_without_matplotlib_training_goes_on_and_one_line_says_so(tmp_path, pictures, monkeypatch, warned):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    trainer = make(tmp_path / "out")
    trainer.train()
    assert os.listdir(tmp_path / "out") == ["srigl_history.json"]
    (line,) = warned
    assert "no picture of the topology" in line
    assert "pip install '.[plots]'" in line
    assert trainer.state.global_step == 6


def test_a_picture_that_fails_does_not_fail_the_training(tmp_path, pictures, warned):
    trainer = make(tmp_path / "out")
    (tmp_path / "out" / "layers.png").mkdir(parents=True)
    trainer.train()
    assert len(warned) == 1
    assert trainer.state.global_step == 6


# --- the history survives --------------------------------------------------------------------------------------------


def test_a_resumed_training_has_the_reports_from_before(tmp_path):
    whole = make(tmp_path / "a", save_strategy="steps", save_steps=3)
    whole.train()
    resumed = make(tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert [report.step for report in resumed.topology_reports] == [2, 4]
    assert resumed.topology_reports == whole.topology_reports
    assert resumed._srigl_callback.history.start == whole._srigl_callback.history.start


@pytest.mark.parametrize("damage", [None, "{", '{"version": 2}', "[]"])
def test_resuming_without_a_history_begins_one(tmp_path, damage, warned):
    whole = make(tmp_path / "a", save_strategy="steps", save_steps=3)
    whole.train()
    file = tmp_path / "a" / "checkpoint-3" / "srigl_history.json"
    file.unlink()
    if damage is not None:
        file.write_text(damage)
    resumed = make(tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert resumed.topology_reports == whole.topology_reports[1:]
    assert resumed._srigl_callback.history.start_step == 3
    assert [("begins anew at step 3" in line) for line in warned] == ([] if damage is None else [True])


def test_a_history_goes_to_json_and_back(tmp_path):
    history = History(sparsity_report(blocks(1)), 3, list(REPORTS))
    history.save(tmp_path / "history.json")
    assert History.load(tmp_path / "history.json") == history
    assert [report.step for report in History.load(tmp_path / "history.json", until=7).reports] == [5, 7]
    stored = json.loads((tmp_path / "history.json").read_text())
    assert stored["layers"] == ["0.fc1", "0.q", "1.fc1", "1.q"]
    assert os.listdir(tmp_path) == ["history.json"]


# --- hf-srigl plot ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "sparse"
    sparsify(tiny_bert(), CONFIG).save_pretrained(path)
    return path


def test_plot_draws_the_layers(folder, tmp_path, capsys, figure):
    capsys.readouterr()
    assert main(["plot", str(folder), str(tmp_path / "x.png"), "--title", "mine"]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'x.png'}: sparsity, fan-in and active neurons of 13 layers\n", "")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert figure.texts[0].get_text() == "mine"


def test_plot_draws_the_training(folder, tmp_path, capsys):
    History(sparsity_report(blocks(1)), 0, list(REPORTS)).save(folder / "srigl_history.json")
    capsys.readouterr()
    assert main(["plot", str(folder), str(tmp_path / "x.svg"), "--training", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "path": str(folder), "picture": str(tmp_path / "x.svg"),
        "drawn": "fan-in, active neurons and connections over 3 topology updates",
    }  # fmt: skip
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")


def test_what_plot_refuses(folder, tmp_path, capsys, monkeypatch):
    def fails(*argv):
        capsys.readouterr()
        assert main(["plot", *map(str, argv)]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err

    picture = tmp_path / "x.png"
    assert "expected a name ending in" in fails(folder, tmp_path / "x.doc")
    assert "a folder that exists" in fails(folder, tmp_path / "no" / "x.png")
    (tmp_path / "folder.png").mkdir()
    assert "cannot write to" in fails(folder, tmp_path / "folder.png")
    assert "there is no" in fails(tmp_path / "nowhere", picture)
    assert "has no srigl_history.json" in fails(folder, picture, "--training")
    History(sparsity_report(blocks(1))).save(folder / "srigl_history.json")
    assert "made no topology update" in fails(folder, picture, "--training")
    (folder / "srigl_history.json").write_text("{}")
    assert "is not a history" in fails(folder, picture, "--training")
    tiny_bert().save_pretrained(tmp_path / "dense")
    assert "not a condensed checkpoint" in fails(tmp_path / "dense", picture)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install '.[plots]'" in fails(folder, picture)
    assert not picture.exists()
