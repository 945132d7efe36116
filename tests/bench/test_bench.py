"""`hf-srigl bench`: every contestant computes the same layer, the arithmetic of the tables, the command's options."""

import json
import time

import pytest
import torch
from rounding import assert_product
from transformers import BertConfig, BertModel

from hf_srigl.bench import layers as bench
from hf_srigl.bench import measure
from hf_srigl.bench import models as bench_models
from hf_srigl.cli import main

LAYER = ["bench", "--shapes", "8x20", "--rows", "3", "--seconds", "0.001", "--threads", "1"]


def test_every_contestant_computes_the_layer():
    dense, condensed = bench.layer_pair(8, 20, 0.5)
    x = torch.randn(3, 20)
    calls = bench.contestants(dense, condensed, x)
    assert {"fp32", "bf16", "CSR", "condensed", "condensed bf16"} <= set(calls)
    operands = (x, condensed.to_dense(), condensed.bias)
    for name, dtype in (("CSR", torch.float32), ("condensed", torch.float32), ("condensed bf16", torch.bfloat16)):
        assert_product(calls[name](), *(tensor.to(dtype) for tensor in operands), name=name)
    assert calls["fp32"]().shape == calls["bf16"]().shape == (3, 8)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, at the first compile
def test_the_gather_computes_the_layer():
    dense, condensed = bench.layer_pair(8, 20, 0.5)
    x = torch.randn(3, 20)
    torch.compiler.set_stance("force_eager")  # the compiler itself is not what is tested
    try:
        result = bench.contestants(dense, condensed, x, gather=True)["gather"]()
    finally:
        torch.compiler.set_stance("default")
    assert_product(result, x, condensed.to_dense(), condensed.bias)


def test_calls_take_turns():
    order = []
    times = measure.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0, at_least=20)
    rounds = [tuple(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert rounds[0] == ("a", "b")  # to warm up
    assert len(rounds) == 21
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert set(times) == {"a", "b"}


def test_the_clock_is_the_one_asked_for():
    ticks = iter(range(1000))
    times = measure.alternate({"a": lambda: next(ticks), "b": lambda: None}, 0.0, clock=lambda: float(next(ticks)))
    assert times == {"a": 2.0, "b": 1.0}


def test_one_thread_is_measured_in_its_own_time():
    assert measure.clock_for(1) is time.thread_time
    assert measure.clock_for(2) is time.perf_counter


def cell(rows, threads=1, **times):
    return bench.Cell(
        "inference", 0.9, threads, rows, 768, 3072, {n.replace("_", " "): t for n, t in times.items()}, {}
    )


def test_the_tables():
    cells = [
        cell(1, fp32=4e-6, bf16=2e-6, CSR=8e-6, condensed=1e-6, condensed_bf16=2e-6),
        cell(8, fp32=1e-6, bf16=1e-6, CSR=1e-6, condensed=1e-6, condensed_bf16=4e-6),
    ]
    lines = bench.layer_table(cells).splitlines()
    assert (
        lines[0]
        == "| sparsity | threads | rows | out x in | fp32 us | bf16 | CSR | condensed | condensed bf16 | kernel |"
    )
    assert lines[2] == "| 90% | 1 | 1 | 768x3072 | 4 | 2.00 | 0.50 | 4.00 | 2.00 |  |"
    text = bench.summary(cells)
    assert "| 90% | 1 | condensed over fp32 | 2.00 | 1.00 |" in text
    assert "| 90% | 1 | condensed over CSR | 2.83 | 1.00 |" in text
    assert "| 90% | 1 | condensed bf16 over bf16 | 0.50 | 0.25 |" in text
    assert len(bench.summary([*cells, cell(1, threads=2, fp32=1.0, condensed=0.5)]).splitlines()) == 2 + 6 + 1


def test_the_command(capsys, tmp_path):
    file = tmp_path / "table.md"
    options = ["--sparsity", "0.5", "0.8", "--gradients", "4", "--models", "--output", str(file)]
    assert main([*LAYER, *options]) == 0
    printed = capsys.readouterr().out
    assert file.read_text() == printed
    assert "| 50% | 1 | 3 | 8x20 |" in printed
    assert "| 80% | 1 | 4 | 8x20 |" in printed
    assert "forward + backward" in printed
    assert main([*LAYER, "--gradients", "--models", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(c["rows"], c["out_features"], c["in_features"]) for c in result["layers"]] == [(3, 8, 20)]
    assert result["models"] == []
    assert "command: `hf-srigl" in result["head"]


def test_threads_are_used_and_restored(monkeypatch):
    seen = []
    monkeypatch.setattr(
        bench, "alternate", lambda calls, seconds, clock: seen.append(torch.get_num_threads()) or {"fp32": 1.0}
    )
    bench.bench_layers([(4, 6)], [1], [0.5], [2, 1], seconds=0.0)
    assert seen == [2, 1]
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("wrong", [["--shapes", "8by20"], ["--shapes", "0x8"], ["--rows", "0"], ["--sparsity", "1"]])
def test_wrong_options(wrong, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["bench", *wrong])
    assert raised.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_a_model_and_its_variants(monkeypatch):
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = BertConfig(**sizes, num_attention_heads=2)
    ids = torch.arange(6)[None]
    monkeypatch.setitem(bench_models.MODELS, "tiny", lambda: (lambda: BertModel(config), lambda m: lambda: m(ids)))
    (found,) = bench_models.bench_models(["tiny"], [0.5], [1], seconds=0.0)
    assert found.what == "tiny"
    assert {"fp32", "bf16", "condensed", "condensed bf16"} <= set(found.times)
    models = bench_models.variants(BertModel(config).eval(), 0.5)
    assert models["condensed"](ids)[0].dtype == torch.float32
    assert models["condensed bf16"](ids)[0].dtype == torch.bfloat16
    assert torch.equal(models["fp32"](ids)[0], models["fp32"](ids)[0])


def test_the_decode_step_leaves_its_cache_as_it_was():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50)).eval()
    lengths = []
    model.transformer.register_forward_hook(lambda m, a, out: lengths.append(out.past_key_values.get_seq_length()))
    with torch.inference_mode():
        step = bench_models._decoding(model, torch.zeros(1, bench_models.CONTEXT + 1, dtype=torch.long))
        step()
        step()
    assert lengths == [bench_models.CONTEXT, bench_models.CONTEXT + 1, bench_models.CONTEXT + 1]
