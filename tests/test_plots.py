"""The picture: what is drawn is what the reports say."""

import sys

import pytest
from torch import nn

from hf_srigl import SRigLConfig, plots, sparsify, sparsity_report
from hf_srigl.plots import finding, kind_labels, plot_topology, topology_series
from hf_srigl.updates import LayerUpdate, UpdateReport


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
    """The figure that `plot_topology` is about to draw on."""
    made = plots.new_figure()
    monkeypatch.setattr(plots, "new_figure", lambda: made)
    return made


def drawn(axes):
    return sorted((list(line.get_xdata()), [round(float(y), 6) for y in line.get_ydata()]) for line in axes.lines)


def texts(axes):
    return {text.get_text(): text for text in axes.texts}


def test_every_layer_is_a_line_of_fan_ins_and_one_of_active_neurons(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png", total_steps=20)
    fan_ins, shares = figure.axes
    assert drawn(fan_ins) == [([5, 10, 20], [2, 2, 2]), ([5, 10, 20], [4, 8, 8]), ([7, 20], [2, 2]), ([7, 20], [5, 5])]
    assert drawn(shares) == [
        ([5, 10, 20], [50, 20, 20]), ([5, 10, 20], [100, 100, 100]), ([7, 20], [40, 40]), ([7, 20], [100, 100]),
    ]  # fmt: skip
    assert all(line.get_drawstyle() == "steps-post" for axes in figure.axes for line in axes.lines)


def test_without_total_steps_the_picture_ends_at_the_last_update(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png")
    assert all(axes.get_xlim() == (0, 10) for axes in figure.axes)


def test_start_is_step_0():
    model = sparsify(nn.ModuleDict({"fc1": nn.Linear(20, 10)}), SRigLConfig(sparsity=0.9))
    series = topology_series([report(5, update("fc1", 4, 5))], start=sparsity_report(model))
    assert series == {"fc1": [(0, 2, 1.0), (5, 4, 0.5)]}
    assert topology_series([report(5, update("fc1", 4, 5))]) == {"fc1": [(5, 4, 0.5)]}


def test_one_label_and_colour_for_each_kind_and_grey_for_what_is_never_ablated(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png")
    for axes in figure.axes:
        labels = texts(axes)
        assert set(labels) == {"fc1", "q"}
        assert labels["q"].get_color() == plots._GREY != labels["fc1"].get_color()
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
    assert subtitle.startswith("90.0% of the weights are zero at every step; 3 topology updates, the last at step 10")
    assert "No neuron" in finding(REPORTS[:1])


def test_a_title_of_ones_own(figure, tmp_path):
    plot_topology(REPORTS, tmp_path / "picture.png", title="mine")
    assert figure.texts[0].get_text() == "mine"


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="made no topology update"):
        plot_topology([], tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install hf_srigl\[plots\]"):
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
    placed = plots._spread([float(v) for v in values], gap=1.0, top=10.0)
    order = sorted(range(len(values)), key=values.__getitem__)
    inside = [placed[i] for i in order]
    assert all(upper - lower >= 1.0 - 1e-9 for lower, upper in zip(inside, inside[1:], strict=False))
    assert all(p <= 10.0 for p in placed)


def test_labels_move_no_more_than_they_must():
    assert plots._spread([5.0], gap=1.0, top=10.0) == [5.0]
    assert plots._spread([3.0, 1.0, 3.0], gap=1.0, top=10.0) == [2.5, 1.0, 3.5]  # half up, half down
    assert plots._spread([10.0, 10.0], gap=1.0, top=10.0) == [9.0, 10.0]
