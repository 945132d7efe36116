"""The parts of the examples: metrics against scikit-learn and scipy, images of every mode, augmentation, settings files."""

import csv
import doctest
import importlib.util
import random
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import stats
from sklearn import metrics
from transformers import AutoModelForImageClassification, TrainingArguments, ViTConfig

import data as example_data
import glue_metrics
import hf_srigl
import images
import run_imagenet
import shared
from hf_srigl import SRigLConfig, sparsify
from hf_srigl.model.attachment import condensed_layers

ROOT = Path(hf_srigl.__file__).parent.parent
EXAMPLES = ROOT / "examples"

# --- metrics ---------------------------------------------------------------------------------------------------------


def compute(task, guess, truth):
    return glue_metrics.LocalMetric(task).compute(predictions=guess, references=truth)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_classes_against_scikit_learn(seed):
    truth, guess = np.random.default_rng(seed).integers(0, 2, (2, 50))
    accuracy = metrics.accuracy_score(truth, guess)
    assert compute("cola", guess, truth) == {
        "matthews_correlation": pytest.approx(metrics.matthews_corrcoef(truth, guess))
    }
    for task in ("mrpc", "qqp"):
        assert compute(task, guess, truth) == {
            "accuracy": accuracy,
            "f1": pytest.approx(metrics.f1_score(truth, guess)),
        }
    for task in ("sst2", "mnli", "qnli", "rte", "wnli", "accuracy"):
        assert compute(task, guess, truth) == {"accuracy": accuracy}


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_numbers_against_scipy(seed):
    truth, guess = np.random.default_rng(seed).normal(size=(2, 50)).astype(np.float32)
    truth = truth.round(1)  # so that some are equal
    ours = compute("stsb", guess, truth)
    assert ours["pearson"] == pytest.approx(stats.pearsonr(guess, truth)[0], abs=1e-6)
    assert ours["spearmanr"] == pytest.approx(stats.spearmanr(guess, truth)[0], abs=1e-6)
    assert compute("mse", guess, truth) == {"mse": pytest.approx(metrics.mean_squared_error(truth, guess))}


def test_metrics_by_hand():
    # guesses 1 1 0 0 0 for 1 0 0 0 1: one true positive, one false, one missed, two true negatives
    guess, truth = [1, 1, 0, 0, 0], [1, 0, 0, 0, 1]
    assert compute("mrpc", guess, truth) == {"accuracy": 0.6, "f1": 0.5}
    assert compute("cola", guess, truth)["matthews_correlation"] == pytest.approx((1 * 2 - 1 * 1) / 6)
    assert compute("cola", [1, 1], [1, 0]) == {"matthews_correlation": 0.0}  # as scikit-learn has it
    assert compute("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}
    assert compute("stsb", [1.0, 2.0, 9.0], [1.0, 2.0, 3.0])["spearmanr"] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_several_labels_against_scikit_learn(seed):
    truth, guess = np.random.default_rng(seed).integers(0, 2, (2, 30, 4))
    truth[:, 3] = guess[:, 3] = 0  # a class that is nowhere
    f1 = {f"f1_{way}": metrics.f1_score(truth, guess, average=way, zero_division=0) for way in ("micro", "macro")}
    expected = f1 | {"accuracy": metrics.accuracy_score(truth, guess)}
    assert glue_metrics.multi_label_metrics(guess, truth) == pytest.approx(expected)


def test_the_example_in_the_docstring():
    assert doctest.testmod(glue_metrics).failed == 0 < doctest.testmod(glue_metrics).attempted


def test_the_metric_of_the_hub_is_used_where_there_is_one(monkeypatch):
    asked = []
    monkeypatch.setattr(glue_metrics.evaluate, "load", lambda *names: asked.append(names) or "theirs")
    assert glue_metrics.load_metric("cola", regression=False) == "theirs"
    glue_metrics.load_metric(None, regression=True)
    glue_metrics.load_metric(None, regression=False)
    assert asked == [("glue", "cola"), ("mse",), ("accuracy",)]


# --- images ----------------------------------------------------------------------------------------------------------


def picture(mode):
    """8 x 8, left half one colour, right half another, in any mode."""
    if mode == "I;16":
        values = np.full((8, 8), 100 * 257, np.uint16)
        values[:, 4:] = 200 * 257
        return Image.fromarray(values)
    grey = Image.fromarray(np.tile(np.array([100] * 4 + [200] * 4, np.uint8), (8, 1)))
    return grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_the_same_grey(mode):
    image = picture(mode)
    if mode == "I":
        image = picture("I;16").convert("I")
    for channels in (1, 3):
        pixels = np.asarray(images.to_mode(image, channels)).astype(int)
        assert pixels.shape == ((8, 8) if channels == 1 else (8, 8, 3))
        assert np.abs(pixels[:, :4] - 100).max() <= 1
        assert np.abs(pixels[:, 4:] - 200).max() <= 1


def test_what_is_transparent_becomes_white():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert images.to_mode(clear, 3).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert images.to_mode(palette, 3).getpixel((0, 0)) == (10, 20, 30)
    palette.info["transparency"] = 1
    assert images.to_mode(palette, 3).getpixel((0, 0)) == (255, 255, 255)
    assert images.to_mode(Image.new("1", (2, 2), 1), 1).getpixel((0, 0)) == 255


def test_a_folder_of_mixed_modes_trains(tmp_path):
    for kind in ("dark", "light"):
        (tmp_path / kind).mkdir()
        for mode, suffix in (("L", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("LA", "png"), ("1", "bmp")):
            picture(mode).save(tmp_path / kind / f"{mode}.{suffix}")
    vit = "image_size=8,patch_size=4,hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32"
    command = f"--train_dir {tmp_path} --model_type vit --config_overrides {vit} --do_train --do_eval --max_steps 2 "
    command += f"--output_dir {tmp_path / 'out'} --cache_dir {tmp_path / 'cache'} --use_cpu --disable_tqdm true "
    command += (
        "--sparsity 0.5 --mixup 0.2 --cutmix 1 --rand_augment 9 --label_smoothing_factor 0.1 --train_val_split 0.25"
    )
    run_imagenet.main(shlex.split(command))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label == {0: "dark", 1: "light"}


OPTIONS = images.ImageArguments(crop_ratio=0.5, horizontal_flip=0.0)


def test_evaluation_takes_the_middle():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[2:6, 6:10] = 255
    _, evaluation = images.transforms(OPTIONS, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert evaluation(Image.fromarray(pixels)).shape == (3, 4, 4)
    assert evaluation(Image.fromarray(pixels))[:, 1:3, 1:3].min() == 1
    normalised = images.to_tensor(Image.new("L", (2, 2), 255), (0.5,), (0.25,))
    assert normalised.shape == (1, 2, 2)
    assert (normalised == 2).all()


def test_training_crops_and_mirrors():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))
    random.seed(0)
    crops = [np.asarray(images.random_resized_crop(ramp, 16, 0.1)).astype(int) for _ in range(50)]
    assert {crop.shape for crop in crops} == {(16, 16)}
    widths = [crop[0, -1] - crop[0, 0] for crop in crops]
    assert min(widths) < 100 < 200 < max(widths)  # from a small part to nearly all
    always = images.ImageArguments(horizontal_flip=1.0, min_scale=1.0)
    training, _ = images.transforms(always, 16, (0.0,), (1.0,))
    row = training(ramp)[0, 0]
    assert (row[:-1] > row[1:]).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("number", range(len(images._OPERATIONS)))
def test_every_operation_of_rand_augment(mode, number):
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(60, 190, (32, 32, 3), dtype=np.uint8)).convert(mode)
    operation = images._OPERATIONS[number]
    changed = [operation(image, strength) for strength in (-0.9, 0.9)]
    assert all(result.size == image.size and result.mode == mode for result in changed)
    same = [np.array_equal(np.asarray(result), np.asarray(image)) for result in changed]
    colour_of_grey = mode == "L" and number == 7
    assert same == [number == 0 or colour_of_grey] * 2


def test_mixup_and_cutmix_mix_targets_as_they_mix_images(monkeypatch):
    monkeypatch.setattr(images.random, "betavariate", lambda a, b: 0.25)
    pixels = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    targets = torch.eye(2)
    mixed, labels = images.mixup(pixels, targets, 0.2)
    assert torch.equal(labels, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    assert (mixed[0] == 0.25).all()
    assert (mixed[1] == 0.75).all()
    for _ in range(20):
        mixed, labels = images.cutmix(pixels, targets, 1.0)
        assert torch.equal(mixed.mean((1, 2, 3)), labels[:, 1])  # 64ths are exact
        assert labels[0, 1] <= 0.25


def test_the_collator_smooths_training_labels_only():
    rows = [{"pixel_values": torch.zeros(1, 2, 2), "label": i, "training": True} for i in range(2)]
    collate = images.Collator(4, OPTIONS, smoothing=0.2)
    assert torch.allclose(collate(rows)["labels"][0], torch.tensor([0.85, 0.05, 0.05, 0.05]))
    assert collate([row | {"training": False} for row in rows])["labels"].tolist() == [0, 1]
    logits = torch.randn(2, 4)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]), label_smoothing=0.2)
    torch.testing.assert_close(images.cross_entropy({"logits": logits}, collate(rows)["labels"]), expected)


def test_what_torchvision_is_asked_for_where_it_is_installed(monkeypatch):
    """torchvision is not installed here: this shows what would be called, not that it works."""
    calls = []

    class Recorder(types.ModuleType):
        def __getattr__(self, name):
            return lambda *arguments, **options: calls.append(name) or name

    v2 = Recorder("torchvision.transforms.v2")
    parents = {"torchvision": types.ModuleType("torchvision"), "torchvision.transforms": types.ModuleType("transforms")}
    parents["torchvision.transforms"].v2 = v2
    for name, module in (parents | {"torchvision.transforms.v2": v2}).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    images.transforms(images.ImageArguments(rand_augment=9), 224, (0.5,), (0.5,))
    made = {
        "ToImage",
        "ToDtype",
        "Normalize",
        "RandAugment",
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "Resize",
        "CenterCrop",
    }
    assert set(calls) == made | {"Compose"}


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "held", "classes"),
    [("trec", 4381, 1000, set(example_data.KINDS.values())), ("movies", 8605, 2000, {"positive", "negative"})],
)
def test_what_the_data_script_writes(name, train, held, classes, tmp_path):
    try:
        example_data.SETS[name](tmp_path)
    except shared.UserError as error:
        pytest.skip(str(error))
    parts = [
        list(csv.DictReader((tmp_path / f"{part}.csv").read_text().splitlines())) for part in ("train", "validation")
    ]
    assert [len(part) for part in parts] == [train, held]
    assert {row["label"] for part in parts for row in part} == classes
    if name == "trec":
        assert not {row["sentence"] for row in parts[0]} & {row["sentence"] for row in parts[1]}


# --- settings --------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "glue": "run_glue",
    "digits": "run_imagenet",
    "shakespeare": "run_clm",
    "shakespeare_mlm": "run_mlm",
    "sft": "sparse_sft",
}


def parser_of(script):
    module = pytest.importorskip(script)
    kinds = [module.ModelArguments, module.DataArguments, shared.SparseArguments]
    kinds += [images.ImageArguments] if script == "run_imagenet" else []
    kinds += [module.TeacherArguments] if script == "run_glue" else []
    return shared.Parser((*kinds, module.SFTConfig if script == "sparse_sft" else TrainingArguments))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL's own setting
@pytest.mark.parametrize("path", sorted((EXAMPLES / "configs").iterdir()), ids=lambda path: path.stem)
def test_every_settings_file_is_read(path):
    script = SCRIPTS.get(path.stem, "run_imagenet")
    command = [str(path), "--use_cpu", "--output_dir", "out"]
    command += ["--model_name_or_path", "model"] if script in ("run_glue", "sparse_sft") else []
    parsed = parser_of(script).parse(command)
    values = yaml.safe_load(path.read_text())
    for name in values:
        holders = [each for each in parsed if hasattr(each, name)]
        assert holders, name
        assert getattr(holders[0], name) == values[name], name


@pytest.mark.parametrize(("percent", "accuracy"), [(80, "77.47"), (90, "76.00")])
def test_the_papers_recipe(percent, accuracy):
    text = (EXAMPLES / "configs" / f"vit_b16_imagenet_{percent}.yaml").read_text()
    assert accuracy in text
    command = [str(EXAMPLES / "configs" / f"vit_b16_imagenet_{percent}.yaml"), "--use_cpu"]
    _, _, sparse, _, args = parser_of("run_imagenet").parse(command)
    assert sparse.sparsity == percent / 100
    assert (sparse.gamma_sal, sparse.update_every, sparse.drop_fraction, sparse.stop_updates_at) == (
        0.95,
        100,
        0.3,
        0.75,
    )
    assert args.max_steps == int(150 * 1_281_167 / 4096) + 1
    assert args.warmup_steps == round(16 * 1_281_167 / 4096)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * 8 == 4096
    config = ViTConfig()
    assert (config.patch_size, config.hidden_size, config.num_hidden_layers, config.image_size) == (16, 768, 12, 224)
    small = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,image_size=32"
    vit = run_imagenet.load_model(run_imagenet.ModelArguments(model_type="vit", config_overrides=small), ["a", "b"])
    options = {"exclude_modules": sparse.exclude_modules, "sparsity": 0.5, "init": "random"}
    names = [name.split(".")[-1] for name in condensed_layers(sparsify(vit, SRigLConfig(**options)))]
    assert sorted(names) == sorted(2 * ["o_proj", "fc1", "fc2"])


def test_json_and_yaml_and_the_command_line_agree(tmp_path):
    (tmp_path / "a.json").write_text(
        '{"model_name_or_path": "m", "sparsity": 0.5, "gamma_sal": null, "learning_rate": 1e-4}'
    )
    (tmp_path / "a.yaml").write_text("model_name_or_path: m\nsparsity: 0.5\ngamma_sal: null\nlearning_rate: 1e-4\n")
    lines = ["--model_name_or_path m --sparsity 0.5 --gamma_sal null --learning_rate 1e-4", "a.json", "a.yaml"]
    seen = set()
    for line in lines:
        command = [str(tmp_path / line) if line.startswith("a.") else line] if " " not in line else line.split()
        model, _, sparse, _, args = parser_of("run_glue").parse([*command, "--use_cpu"])
        seen.add((model.model_name_or_path, sparse.sparsity, sparse.gamma_sal, args.learning_rate))
    assert seen == {("m", 0.5, None, 1e-4)}
    overridden = parser_of("run_glue").parse([str(tmp_path / "a.json"), "--use_cpu", "--sparsity", "0.7", "--dense"])
    assert (overridden[2].sparsity, overridden[2].dense, overridden[4].learning_rate) == (0.7, True, 1e-4)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL's own setting
def test_the_commands_of_the_page_can_be_typed(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (EXAMPLES / "README.md").read_text() + (ROOT / "README.md").read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in blocks.splitlines() if "examples/" in line]
    commands = [words[next(i for i, word in enumerate(words) if word.startswith("examples/")) :] for words in commands]
    assert {words[0] for words in commands} >= {f"examples/{name}.py" for name in ("data", *SCRIPTS.values())}
    for script, *arguments in commands:
        assert (ROOT / script).is_file()
        if script == "examples/data.py":
            assert arguments[0] in example_data.SETS
            assert len(arguments) == 2
        elif Path(script).stem in SCRIPTS.values():
            parser_of(Path(script).stem).parse([*arguments, "--use_cpu"])
