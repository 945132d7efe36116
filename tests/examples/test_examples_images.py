"""Folders of images as people have them: which class an image is of, what is left out, and one damaged image among many."""

import io
import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from example_runs import options, results
from PIL import Image
from transformers import AutoModelForImageClassification

import image_folders
import run_imagenet
from shared import UserError

pytestmark = pytest.mark.usefixtures("logging_as_before")

SMALL = "image_size=28,patch_size=7,hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64"


@pytest.fixture
def draw(tmp_path):
    """Writes images; light ones in folders called `light`, so that two classes can be told apart."""

    def write(*paths, mode="RGB", **more):
        for path in paths:
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), 220 if "light" in path else 20).convert(mode).save(file, **more)

    return write


@pytest.fixture
def run(tmp_path):
    def go(*flags, **more):
        settings = {"model_type": "vit", "config_overrides": SMALL, "init": "random", "sparsity": 0.5, "max_steps": 1}
        if "model_name_or_path" in more:
            settings = {"sparsity": 0.5, "max_steps": 1}
        run_imagenet.main(options(tmp_path, *flags, **settings | more))

    return go


def classes_of(folder):
    return list(json.loads((folder / "config.json").read_text())["id2label"].values())


def test_the_outermost_folder_is_the_class(draw, tmp_path, caplog):
    draw("a/x/1.png", "a/y/deep/2.JPG", "b/x/3.TiFF", "b/4.webp")
    draw("a/.ipynb_checkpoints/1-checkpoint.png", ".cache/5.png", "b/._4.png", "6.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    found = image_folders.images_by_class(str(tmp_path), "--train_dir")
    inside = {name: [path.removeprefix(f"{tmp_path}/") for path in paths] for name, paths in found.items()}
    assert inside == {"a": ["a/x/1.png", "a/y/deep/2.JPG"], "b": ["b/4.webp", "b/x/3.TiFF"]}
    assert "empty holds no image: it is no class" in caplog.text
    assert "2 files are no images in a folder of a class, and left out, such as " in caplog.text


def test_links_are_followed(draw, tmp_path):
    draw("elsewhere/1.png")
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    found = image_folders.images_by_class(str(tmp_path / "data"), "--train_dir")
    assert {name: len(paths) for name, paths in found.items()} == {"a": 1, "b": 1}


def test_a_class_without_validation_images_keeps_the_others_numbers(draw, tmp_path):
    draw("train/a/1.png", "train/b/1.png", "train/c/1.png", "held/c/1.png")
    data = image_folders.load_folders({"train": str(tmp_path / "train"), "validation": str(tmp_path / "held")})
    assert data["validation"]["label"][:] == [2]
    assert data["train"].features["label"].names == ["a", "b", "c"]


def test_what_is_said_of_folders(draw, tmp_path):
    draw("two/a/1.png", "two/b/1.png", "one/a/1.png", "splits/train/a/1.png", "splits/Val/b/1.png", "other/c/1.png")

    def says(**folders):
        with pytest.raises(UserError) as error:
            image_folders.load_folders({split: str(tmp_path / folder) for split, folder in folders.items()})
        return str(error.value).replace(f"{tmp_path}/", "")

    assert says(train="one") == "--train_dir holds one class only, 'a': nothing to learn; found in one"
    assert says(train="splits") == (
        "--train_dir splits holds Val, train, which look like parts of the data and not like classes: give one of them, and "
        "another one to --validation_dir"
    )
    assert says(train="two", validation="other") == (
        "--validation_dir has images of c, which --train_dir has not; it has a, b"
    )
    assert says(train="two/a") == "--train_dir must hold a folder of images for each class, found no image in two/a"


def damaged(kind, content):
    return {
        "half": content[: len(content) // 2],
        "head": b"\x00" * 16 + content[16:],
        "empty": b"",
        "text": b"<html>404</html>",
    }[kind]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("kind", ["half", "head", "empty", "text"])
def test_a_damaged_image_is_named_before_training(kind, suffix, draw, run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    for name in "ab":
        for number in range(3):
            draw(f"train/{name}/{number}.{suffix}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format={"jpg": "jpeg"}.get(suffix, suffix))
    path = tmp_path / "train" / "b" / f"1.{suffix}"
    path.write_bytes(damaged(kind, file.getvalue()))
    with pytest.raises(UserError) as error:
        run("--do_train", train_dir=tmp_path / "train")
    assert str(error.value).startswith(f"the image {path} cannot be read: ")
    assert str(error.value).endswith("; remove it, or --check_images false to find out in training")
    assert "it is empty" in str(error.value) or kind != "empty"
    assert not (tmp_path / "out").exists()


def test_how_many_are_damaged(draw, tmp_path):
    draw("a/1.png", "a/2.png", "b/3.png")
    for name in ("a/1.png", "b/3.png"):
        (tmp_path / name).write_bytes(b"")
    data = image_folders.load_folders({"train": str(tmp_path)})
    with pytest.raises(UserError, match=r"a/1\.png cannot be read: it is empty \(and 1 more of the train images\)"):
        image_folders.check_images(data["train"], "train")


def test_unchecked_images_are_named_when_they_are_met(draw, run, tmp_path):
    draw("train/a/1.png", "train/b/1.png")
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a/1\.png cannot be read: it is empty$"):
        run("--do_train", "--check_images", "false", train_dir=tmp_path / "train")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_every_mode_are_read(mode, draw, tmp_path):
    suffix = "tiff" if mode == "CMYK" else "png"
    draw(f"light/1.{suffix}", mode=mode)
    image = image_folders.open_image({"path": str(tmp_path / "light" / f"1.{suffix}"), "bytes": None}, "")
    assert image.size == (28, 28)


def test_of_an_animation_the_first_frame_and_a_turned_photo_upright(tmp_path):
    frames = [Image.new("L", (4, 2), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    cell = {"path": str(tmp_path / "a.gif"), "bytes": None}
    assert np.asarray(image_folders.open_image(cell, "").convert("L")).max() == 10
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    frames[0].save(tmp_path / "b.jpg", exif=exif)
    content = (tmp_path / "b.jpg").read_bytes()
    assert image_folders.open_image({"path": None, "bytes": content}, "").size == (2, 4)


def test_a_model_keeps_its_numbers_for_the_same_classes(draw, run, tmp_path):
    """Trained on folders of which the second is light; then a model that numbers them the other way round."""
    draw(*(f"data/{name}/{number}.png" for name in ("dark", "light") for number in range(8)))
    folders = {"train_dir": tmp_path / "data", "validation_dir": tmp_path / "data"}
    run("--do_train", "--do_eval", max_steps=30, learning_rate=1e-2, **folders)
    assert results(tmp_path)["eval_accuracy"] == 1
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    model.classifier.weight.data, model.classifier.bias.data = (
        tensor.data.flip(0) for tensor in (model.classifier.weight, model.classifier.bias)
    )
    model.save_pretrained(tmp_path / "out")
    file.write_text(
        json.dumps(
            json.loads(file.read_text()) | {"id2label": {0: "light", 1: "dark"}, "label2id": {"light": 0, "dark": 1}}
        )
    )
    assert list(config["id2label"].values()) == ["dark", "light"]
    again = {"model_name_or_path": tmp_path / "out", "validation_dir": tmp_path / "data"}
    run("--do_eval", output_dir=tmp_path / "eval", **again)
    assert results(tmp_path, "eval")["eval_accuracy"] == 1
    run(
        "--do_train", "--do_eval", output_dir=tmp_path / "more", train_dir=tmp_path / "data", learning_rate=0.0, **again
    )
    assert results(tmp_path, "more")["eval_accuracy"] == 1
    assert classes_of(tmp_path / "more") == ["light", "dark"]


def test_a_model_is_evaluated_on_its_own_classes_only(draw, run, tmp_path):
    draw("train/a/1.png", "train/b/1.png", "train/c/1.png", "part/c/1.png", "other/d/1.png", "other/a/1.png")
    run("--do_train", train_dir=tmp_path / "train")
    model = {"model_name_or_path": tmp_path / "out", "output_dir": tmp_path / "eval"}
    run("--do_eval", validation_dir=tmp_path / "part", **model)
    assert results(tmp_path, "eval")["eval_samples"] == 1
    with pytest.raises(UserError, match="the data has the classes d, it knows a, b, c"):
        run("--do_eval", validation_dir=tmp_path / "other", **model)


def test_images_of_the_hub(draw, run, tmp_path, monkeypatch):
    """Their files are read here too, so that a damaged one is named."""
    draw("a/1.png", "b/1.png")
    contents = [(tmp_path / name / "1.png").read_bytes() for name in "ab"]
    features, numbers = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}), [0, 1]

    def load(*arguments, **more):
        cells = [{"path": f"{i}.png", "bytes": content} for i, content in enumerate(contents)]
        return DatasetDict({"train": Dataset.from_dict({"image": cells, "label": numbers}, features=features)})

    monkeypatch.setattr(run_imagenet, "load_data", load)
    run("--do_train", dataset_name="some/images")
    assert classes_of(tmp_path / "out") == ["a", "b"]
    contents[1] = contents[1][:60]
    with pytest.raises(UserError, match=r"the image 1\.png cannot be read: "):
        run("--do_train", dataset_name="some/images", output_dir=tmp_path / "again")
    features["label"], numbers[:] = ClassLabel(names=["a"]), [0, 0]
    with pytest.raises(UserError, match="the data has one class only, 'a': nothing to learn"):
        run("--do_train", dataset_name="some/images", output_dir=tmp_path / "again")
