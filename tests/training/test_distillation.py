"""Distillation: the loss by hand, and in the Trainer with and without accumulation, for classes and for tokens."""

import copy
import math

import pytest
import torch
from rounding import assert_close_training, path_terms
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from conftest import Toy, tiny_bert, training_args
from hf_srigl import SparseTrainer, SRigLConfig
from hf_srigl.training.distillation import distillation_loss, hidden_state_loss, token_weights

CONFIG = SRigLConfig(sparsity=0.75, update_every=3, gamma_sal=None)


def test_by_hand():
    """Teacher 1/4 and 3/4, student 1/2 and 1/2; the second row agrees, so it counts only in the mean."""
    student, teacher = torch.zeros(2, 2), torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    row = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert distillation_loss(student, teacher, 1.0).item() == pytest.approx(row / 2)
    assert distillation_loss(student, teacher, 1.0, torch.tensor([True, False])).item() == pytest.approx(row)
    hotter = distillation_loss(student, 3 * teacher, 3.0, torch.tensor([1, 0]))
    assert hotter.item() == pytest.approx(9 * row)
    with pytest.raises(ValueError, match="one class"):
        distillation_loss(torch.zeros(3, 1), torch.zeros(3, 1), 1.0)
    with pytest.raises(ValueError, match=r"the student's shape \(2, 2\), its logits are \(2, 3\)"):
        distillation_loss(student, torch.zeros(2, 3), 1.0)


def test_which_tokens_count():
    mask = torch.tensor([[1, 1, 0]])
    assert token_weights({"attention_mask": mask}, torch.Size([1, 3])).tolist() == [[True, True, False]]
    both = {"attention_mask": torch.ones(1, 2), "labels": torch.tensor([[5, -100]])}
    assert token_weights(both, torch.Size([1, 2]), encoder_decoder=True).tolist() == [[True, False]]
    assert token_weights(both, torch.Size([1, 2])).tolist() == [[True, True]]
    assert token_weights({"attention_mask": mask}, torch.Size([1])) is None  # one row an example
    assert token_weights({}, torch.Size([1, 3])) is None


def test_hidden_states_by_hand():
    """Two layers besides the embeddings, one token of three is padding; relative errors 1/4 and 0, then 1 and 1."""
    there = [
        torch.tensor([[[9.0, 9], [9, 9], [9, 9]]]),
        torch.tensor([[[0.0, 2], [3, 4], [1, 1]]]),
        torch.ones(1, 3, 2),
    ]
    here = [torch.zeros(1, 3, 2), torch.tensor([[[1.0, 2], [3, 4], [7, 7]]]), torch.zeros(1, 3, 2)]
    masked = {"attention_mask": torch.tensor([[1, 1, 0]])}
    loss = hidden_state_loss(masked, {"hidden_states": here}, {"hidden_states": there})
    assert loss.item() == pytest.approx(((1 / 4 + 0) / 2 + 1) / 2)
    unmasked = hidden_state_loss({}, {"hidden_states": here}, {"hidden_states": there})
    assert unmasked.item() == pytest.approx(((1 / 4 + 0 + 36) / 3 + 1) / 2)
    # of an encoder-decoder, whose decoder's tokens are told by the labels
    outputs = [{"encoder_hidden_states": s, "decoder_hidden_states": s} for s in (here, there)]
    both = hidden_state_loss({**masked, "labels": torch.tensor([[-100, 5, -100]])}, *outputs)
    assert both.item() == pytest.approx(((1 / 4 + 0) / 2 + 1 + 0 + 1) / 4)


def test_padding_may_be_zero():
    """As architectures leave it that compute on real tokens only; its gradient is zero, not NaN."""
    there = (torch.ones(1, 2, 3), torch.tensor([[[1.0, 0, 0], [0, 0, 0]]]))
    here = torch.full((1, 2, 3), 5.0, requires_grad=True)
    masked = {"attention_mask": torch.tensor([[1, 0]])}
    loss = hidden_state_loss(masked, {"hidden_states": (there[0], here)}, {"hidden_states": there})
    loss.backward()
    assert loss.item() == 16 + 25 + 25
    assert here.grad.tolist() == [[[8, 10, 10], [0, 0, 0]]]


def test_hidden_states_that_cannot_be_compared():
    states = (torch.zeros(1, 2, 4), torch.ones(1, 2, 4))
    for here, there, message in (
        (
            {"hidden_states": states},
            {},
            r"got \[\(1, 2, 4\), \(1, 2, 4\)\] and \[\]: take a teacher of the same architecture",
        ),
        ({"hidden_states": states}, {"hidden_states": states[:1]}, "of the same shapes"),
        ({"hidden_states": states}, {"hidden_states": (states[0], torch.ones(1, 2, 6))}, r"\(1, 2, 6\)"),
        (
            {"hidden_states": (torch.ones(1, 2),) * 2},
            {"hidden_states": (torch.ones(1, 2),) * 2},
            "batch, tokens, features",
        ),
        ({}, {}, "neither student nor teacher gives any"),
    ):
        with pytest.raises(ValueError, match=message):
            hidden_state_loss({}, here, there)


def quiet_bert(seed=0):
    return tiny_bert(seed, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def weights_after(tmp_path, model=quiet_bert, teacher=None, arguments=None, dataset=None, **options):
    args = training_args(tmp_path, learning_rate=5e-3, **(arguments or {}))
    data = Toy() if dataset is None else dataset
    trainer = SparseTrainer(
        model=model(), args=args, train_dataset=data, srigl_config=CONFIG, teacher=teacher, **options
    )
    trainer.train()
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def assert_close(a, b, model):
    """After two steps of SGD with gradients clipped to 1."""
    for name, tensor in a.items():
        assert_close_training(b[name], tensor, steps=2, rate=5e-3, terms=path_terms(model), name=name)


def test_teacher_temperature_and_weight_change_the_outcome(tmp_path):
    teacher = quiet_bert(seed=1)
    before = copy.deepcopy(teacher.state_dict())
    found = [
        weights_after(tmp_path),
        weights_after(tmp_path, teacher=teacher),
        weights_after(tmp_path, teacher=teacher, distillation_temperature=5.0),
        weights_after(tmp_path, teacher=teacher, distillation_weight=1.0),
        weights_after(tmp_path, teacher=teacher, distillation_hidden_weight=1.0),
        weights_after(tmp_path, teacher=teacher, distillation_hidden_weight=2.0),
    ]
    assert all(not same(a, b) for i, a in enumerate(found) for b in found[:i])
    assert same(before, teacher.state_dict())
    assert set(found[0]) == set(found[1])  # the teacher is not saved
    assert same(found[1], weights_after(tmp_path, teacher=teacher))


def test_a_teacher_alone_teaches_what_it_knows(tmp_path):
    """With weight 1 the labels do not matter."""

    class Wrong(Toy):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "labels": torch.tensor(0)}

    teacher = quiet_bert(seed=1)
    right = weights_after(tmp_path, teacher=teacher, distillation_weight=1.0)
    assert same(right, weights_after(tmp_path, teacher=teacher, distillation_weight=1.0, dataset=Wrong()))


class Tokens(Toy):
    def __getitem__(self, i):
        row = super().__getitem__(i)
        return {**row, "labels": row["input_ids"]}


def gpt2(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 100, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0))


def masked_lm(seed=0):
    return BertForMaskedLM(quiet_bert(seed).config)


@pytest.mark.parametrize(("model", "dataset"), [(quiet_bert, Toy), (gpt2, Tokens), (masked_lm, Tokens)])
def test_accumulation_does_not_change_the_gradient(tmp_path, model, dataset):
    """4 x 1 and 1 x 4 are the same step, whether or not the model's own loss is normalised over the whole batch."""
    torch.manual_seed(0)
    start = model()
    start.accepts_loss_kwargs = model is gpt2  # BERT's heads ignore what they are given (transformers#47688)
    teacher = model(1)
    options = {"model": lambda: copy.deepcopy(start), "teacher": teacher, "dataset": dataset()}
    steps = {"max_steps": 2, "optim": "sgd"}
    whole = weights_after(tmp_path, arguments=steps, **options)
    many = {**steps, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_close(whole, weights_after(tmp_path, arguments=many, **options), start)
    deep = {**options, "distillation_hidden_weight": 1.0}
    whole_deep = weights_after(tmp_path, arguments=steps, **deep)
    assert_close(whole_deep, weights_after(tmp_path, arguments=many, **deep), start)
    for other in (whole_deep, weights_after(tmp_path, arguments=steps, **{**options, "teacher": None})):
        with pytest.raises(AssertionError, match="further apart than rounding explains"):
            assert_close(whole, other, start)


def test_accumulation_with_a_loss_function_of_ones_own(tmp_path):
    """The Trainer divides nothing then; with weight 1 only the distillation is left."""

    def own(outputs, labels, num_items_in_batch):
        return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    options = {"teacher": quiet_bert(1), "distillation_weight": 1.0, "compute_loss_func": own}
    steps = {"max_steps": 2, "optim": "sgd"}
    whole = weights_after(tmp_path, arguments=steps, **options)
    many = {**steps, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_close(whole, weights_after(tmp_path, arguments=many, **options), quiet_bert())


class Translated(Toy):
    def __getitem__(self, i):
        row = super().__getitem__(i)
        return {**row, "labels": row["input_ids"].clone().index_fill(0, torch.tensor([0]), -100)}


class Pictures(Toy):
    def __getitem__(self, i):
        pixels = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i))
        return {"pixel_values": pixels, "labels": torch.tensor(i % 2)}


def bart(seed=0):
    torch.manual_seed(seed)
    half = {
        f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 2), ("attention_heads", 2))
    }
    sizes = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32, **half}
    return BartForConditionalGeneration(BartConfig(vocab_size=100, d_model=16, dropout=0.0, **sizes))


def vit(seed=0):
    torch.manual_seed(seed)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2}
    return ViTForImageClassification(ViTConfig(**sizes, num_attention_heads=2, intermediate_size=32))


@pytest.mark.parametrize(("model", "dataset"), [(bart, Translated), (vit, Pictures)])
def test_hidden_states_of_other_architectures(tmp_path, model, dataset):
    """With much of it and nothing else to learn, a student that starts elsewhere comes nearer to its teacher."""
    teacher, start, batch = model(1), model(0), dataset()
    batch = {name: torch.stack([batch[i][name] for i in range(4)]) for name in batch[0]}

    def far(student):
        with torch.no_grad():
            outputs = [m.eval()(**batch, output_hidden_states=True) for m in (student, teacher)]
        return hidden_state_loss(batch, *outputs).item()

    before = far(start)
    args = training_args(tmp_path, learning_rate=5e-3, max_steps=8)
    trainer = SparseTrainer(
        model=start, args=args, train_dataset=dataset(), srigl_config=SRigLConfig(sparsity=0.5, update_every=3),
        teacher=teacher, distillation_weight=1e-6, distillation_hidden_weight=1e4,
    )  # fmt: skip
    trainer.train()
    assert far(trainer.model) < 0.9 * before


def test_evaluation_is_without_the_teacher(tmp_path):
    args = training_args(tmp_path)
    data = {"train_dataset": Toy(), "eval_dataset": Toy(8), "srigl_config": CONFIG}
    plain = SparseTrainer(model=quiet_bert(), args=args, **data)
    taught = SparseTrainer(model=quiet_bert(), args=args, teacher=quiet_bert(1), **data)
    assert taught.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_bad_teachers(tmp_path):
    model = quiet_bert()
    for options, message in (
        ({"teacher": model}, "the teacher is the model that becomes sparse"),
        ({"teacher": quiet_bert(), "distillation_weight": 0.0}, "distillation_weight in"),
        ({"teacher": quiet_bert(), "distillation_temperature": 0.0}, "distillation_temperature above 0"),
        ({"teacher": quiet_bert(), "distillation_hidden_weight": -1.0}, "distillation_hidden_weight of at least 0"),
        ({"distillation_hidden_weight": 1.0}, "distillation_hidden_weight needs a teacher"),
        ({"distillation_weight": 2.0}, "distillation_weight in"),  # without a teacher too
        (
            {"teacher": nn.Linear(2, 2), "distillation_hidden_weight": 1.0},
            "Linear.forward takes no output_hidden_states",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            SparseTrainer(
                model=model, args=training_args(tmp_path), train_dataset=Toy(), srigl_config=CONFIG, **options
            )
    assert isinstance(model.bert.encoder.layer[0].output.dense, nn.Linear)  # nothing has changed
