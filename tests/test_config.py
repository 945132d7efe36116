"""SRigLConfig, the schedule and the distribution."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from transformers import HfArgumentParser

from hf_srigl import SRigLConfig, sparsify, sparsity_report
from hf_srigl.rule.distribution import fan_in_per_layer
from hf_srigl.rule.schedule import drop_fraction_at, floor_count, is_update_step, stagger_offsets, update_interval


def test_defaults_are_the_documented_ones():
    expected = (
        0.9,
        "uniform",
        None,
        None,
        (),
        "magnitude",
        100,
        0.3,
        0.75,
        0.3,
        "gradient",
        False,
        0,
        None,
        0.0,
        "constant_fan_in",
    )
    assert tuple(getattr(SRigLConfig(), f.name) for f in dataclasses.fields(SRigLConfig)) == expected
    assert [f.name for f in dataclasses.fields(SRigLConfig)] == (
        "sparsity distribution target_modules exclude_modules never_ablate init "
        "update_every drop_fraction stop_updates_at gamma_sal grow stagger seed ramp_until ramp_from structure"
    ).split()


def test_json_both_ways(tmp_path):
    config = SRigLConfig(
        sparsity=0.8, target_modules=["a", "b"], never_ablate=["c"], update_every=None, gamma_sal=None, stagger=False
    )
    assert SRigLConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.to_json_file(tmp_path / "c.json")
    assert SRigLConfig.from_json_file(tmp_path / "c.json") == config
    tuples = SRigLConfig(target_modules=("query",), exclude_modules=("key",))
    assert SRigLConfig.from_dict(tuples.to_dict()) == tuples
    assert SRigLConfig(update_every=50.0).to_dict()["update_every"] == 50


def test_it_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SRigLConfig().sparsity = 0.5
    with pytest.raises(TypeError):
        SRigLConfig(0.5)


def test_the_argument_parser_reads_every_field():
    command = (
        "--sparsity 0.8 --distribution erk --target_modules .*dense --exclude_modules .*pooler.* --never_ablate a b "
        "--init random --update_every 0.04 --drop_fraction 0.2 --stop_updates_at 0.5 --gamma_sal 0.9 --grow random "
        "--stagger --seed 3"
    )
    (config,) = HfArgumentParser(SRigLConfig).parse_args_into_dataclasses(command.split(), look_for_args_file=False)
    assert config == SRigLConfig(
        sparsity=0.8,
        distribution="erk",
        target_modules=".*dense",
        exclude_modules=".*pooler.*",
        never_ablate=["a", "b"],
        init="random",
        update_every=0.04,
        drop_fraction=0.2,
        stop_updates_at=0.5,
        gamma_sal=0.9,
        grow="random",
        stagger=True,
        seed=3,
    )
    (default,) = HfArgumentParser(SRigLConfig).parse_args_into_dataclasses([], look_for_args_file=False)
    assert default == SRigLConfig()
    assert all(f.metadata["help"] for f in dataclasses.fields(SRigLConfig))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.0}, "sparsity must be a number in [0, 1), got 1.0"),
        ({"sparsity": -0.1}, "sparsity must be a number in [0, 1), got -0.1"),
        ({"sparsity": "0.9"}, "sparsity must be a number in [0, 1), got '0.9'"),
        ({"sparsity": True}, "sparsity must be"),
        ({"sparsity": float("nan")}, "sparsity must be"),
        ({"distribution": "er"}, "distribution must be one of uniform, erk, got 'er'"),
        ({"init": "zeros"}, "init must be one of magnitude, random, wanda, got 'zeros'"),
        ({"grow": "both"}, "grow must be one of gradient, random, got 'both'"),
        (
            {"update_every": 0},
            "update_every must be a whole number of steps >= 1, a share of all steps in (0, 1), or None",
        ),
        ({"update_every": 1.5}, "update_every must be"),
        ({"update_every": -3}, "update_every must be"),
        ({"drop_fraction": 1.1}, "drop_fraction must be a number in [0, 1], got 1.1"),
        ({"stop_updates_at": 2}, "stop_updates_at must be a number in [0, 1], got 2"),
        ({"gamma_sal": -1}, "gamma_sal must be a number in [0, 1], or None, got -1"),
        ({"gamma_sal": 30}, "gamma_sal must be"),
        ({"target_modules": 3}, "target_modules must be a list of non-empty names or one regular expression, got 3"),
        (
            {"target_modules": "*.query"},
            "target_modules must be a valid regular expression, got '*.query': nothing to repeat",
        ),
        ({"target_modules": [""]}, "target_modules must be a list of non-empty names"),
        ({"never_ablate": "query"}, "never_ablate must be a list of name suffixes, got the string 'query'"),
        ({"stagger": 1}, "stagger must be True or False, got 1"),
        ({"stagger": True, "update_every": None}, "but update_every=None means there are none"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
    ],
    ids=str,
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=None) as error:
        SRigLConfig(**options)
    assert says in str(error.value)


def test_unknown_options():
    with pytest.raises(ValueError, match=r"unknown SRigLConfig option 'sparcity' \(did you mean 'sparsity'\?\)"):
        SRigLConfig.from_dict({"sparcity": 0.5})
    with pytest.raises(ValueError, match=r"unknown SRigLConfig option 'zzz' \(known: sparsity, "):
        SRigLConfig.from_dict({"zzz": 0.5})


# --- schedule --------------------------------------------------------------------------------------------------------


def test_update_steps_by_hand():
    def steps(total, **options):
        return [t for t in range(1, total + 1) if is_update_step(t, total_steps=total, **options)]

    assert steps(1000, interval=100, stop_updates_at=0.75) == [100, 200, 300, 400, 500, 600, 700]
    assert steps(10, interval=1, stop_updates_at=0.7) == [1, 2, 3, 4, 5, 6]  # 0.7 * 10 is 7.000000000000001 in floats
    assert steps(10, interval=4, stop_updates_at=1.0) == [4, 8]
    assert steps(8, interval=4, stop_updates_at=1.0) == [4]
    assert steps(10, interval=None, stop_updates_at=1.0) == []
    assert steps(10, interval=1, stop_updates_at=0.0) == []
    assert steps(20, interval=5, stop_updates_at=1.0, offset=2) == [7, 12, 17]


def test_a_share_of_all_steps_as_interval():
    assert update_interval(0.1, 1000) == 100
    assert update_interval(0.1, 30) == 3  # 0.1 * 30 is 3.0000000000000004 in floats
    assert update_interval(0.001, 100) == 1
    assert update_interval(7, 5) == 7


def test_the_drop_fraction_falls_by_a_cosine():
    def at(step):
        return drop_fraction_at(step, drop_fraction=0.4, stop_updates_at=0.5, total_steps=200)

    assert at(0) == pytest.approx(0.4)
    assert at(25) == pytest.approx(0.2 * (1 + 2**-0.5))
    assert at(50) == pytest.approx(0.2)
    assert at(100) == at(150) == pytest.approx(0.0)


def test_floors_forgive_float_error_only():
    assert [floor_count(x) for x in (0.29 * 100, 2.9999, 0.95 * 20, 0.0)] == [29, 2, 19, 0]


def test_staggered_layers_cover_the_interval_evenly():
    assert stagger_offsets(3, 100) == [0, 33, 66]
    offsets = stagger_offsets(12, 100)
    assert max(b - a for a, b in zip(offsets, [*offsets[1:], 100], strict=True)) <= 9


# --- distribution ----------------------------------------------------------------------------------------------------

SHAPES = {"q": (768, 768), "up": (3072, 768), "down": (768, 3072), "tiny": (8, 8), "wide": (4, 4096)}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_the_targets_together_meet_the_budget(sparsity, distribution):
    fan_in = fan_in_per_layer(SHAPES, sparsity, distribution)
    assert all(1 <= fan_in[name] <= k for name, (_, k) in SHAPES.items())
    density = sum(fan_in[n] * s[0] for n, s in SHAPES.items()) / sum(a * b for a, b in SHAPES.values())
    assert density == pytest.approx(1 - sparsity, rel=0.03)
    if distribution == "uniform":
        assert fan_in["up"] == max(1, round((1 - sparsity) * 768))


def test_erk_by_hand():
    # raw densities (N + K) / (N K): 0.2 and 0.02; sizes 100 and 10000; budget at 90 %: 1010 values
    # scale = 1010 / (0.2 * 100 + 0.02 * 10000) = 4.59; 0.2 * 4.59 = 0.918 and 0.02 * 4.59 = 0.0918
    assert fan_in_per_layer({"small": (10, 10), "large": (100, 100)}, 0.9, "erk") == {"small": 9, "large": 9}
    # at 80 % the small layer would exceed density 1: it stays dense, the rest takes what is left (1920 values)
    assert fan_in_per_layer({"small": (10, 10), "large": (100, 100)}, 0.8, "erk") == {"small": 10, "large": 19}


def test_a_half_is_rounded_as_the_user_wrote_it():
    assert fan_in_per_layer({"a": (4, 15)}, 0.9) == {"a": 2}  # (1 - 0.9) * 15 is 1.4999999999999996 in floats
    assert fan_in_per_layer({"a": (4, 4)}, 0.99) == {"a": 1}


# --- report ----------------------------------------------------------------------------------------------------------


def test_the_report_counts_what_is_there():
    model = nn.Sequential(nn.Embedding(10, 40), nn.Linear(40, 20), nn.Linear(20, 30, bias=False), nn.Linear(30, 3))
    model = sparsify(model, SRigLConfig(sparsity=0.9, exclude_modules=["3"]))
    mask = model[1].mask()
    mask[:5] = False
    model[1].rewire(mask)  # five neurons ablated, their slots unused
    report = sparsity_report(model)
    first, second = report.rows
    assert (first.name, first.out_features, first.in_features, first.fan_in) == ("1", 20, 40, 4)
    assert (first.active_neurons, first.values, first.multiply_adds, first.dense_multiply_adds) == (15, 60, 60, 800)
    assert first.sparsity == pytest.approx(1 - 60 / 800)
    assert first.bytes == 80 * (4 + 2) + 20 + 20 * 4
    assert first.dense_bytes == 800 * 4 + 20 * 4
    assert (second.fan_in, second.values) == (2, 60)
    dense = 400 + 800 + 20 + 600 + 90 + 3
    stored = dense - 800 - 600 + 60 + 60
    assert (report.parameters, report.dense_parameters) == (stored, dense)
    assert report.target_sparsity == pytest.approx(1 - 120 / 1400)
    assert report.model_sparsity == pytest.approx(1 - stored / dense)
    assert report.dense_bytes == dense * 4
    assert report.bytes == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["fan_in"] == 4
    table = str(report).splitlines()
    assert table[0].split() == ["layer", "out", "x", "in", "fan-in", "active", "sparsity", "values"]
    assert "15/20" in table[2]


def test_the_report_of_a_dense_model():
    report = sparsity_report(nn.Linear(4, 3))
    assert report.rows == ()
    assert (report.target_sparsity, report.model_sparsity, report.parameters) == (0.0, 0.0, 15)
    assert "0.00%" in str(report)


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    model[1].weight = model[0].weight
    assert sparsity_report(model).parameters == 120
    assert torch.equal(model[0].weight, model[1].weight)
