"""What the page shows: its models, examples, answers and attention, and its messages."""

import argparse
import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paddle
import pytest
from conftest import ROOT
from test_demo import EXAMPLES, SEVEN, THREE, expected, opened_run

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.data.images import to_image
from t2t_vit.deploy.engines import to_input
from t2t_vit.explain.attention import attention_maps, on_grid, rollout, token_box
from t2t_vit.explain.overlay import overlay
from t2t_vit.page import shelf
from t2t_vit.page.shelf import METHODS, Shelf


def shelf_of(*words, **settings):
    args = argparse.Namespace(config=None, output=None, pretrained=None, weights_named=False, engine=None, opts=[])
    vars(args).update(settings)
    return Shelf(args, load_config(ROOT / "configs/lit_data.yaml", list(zip(words[::2], words[1::2]))))


@pytest.fixture(scope="module")
def models():
    return shelf_of()


@pytest.fixture
def layout():
    return pytest.importorskip("t2t_vit.page.layout", reason="the page is made with gradio: pip install gradio")


def test_models_are_those_of_the_command_line_and_the_runs(tmp_path):
    shipped = ["cifar10", "cifar10_augment", "cifar10_seven", "lit_data_pit"]
    names = shelf_of().names
    assert names[0] == "lit_data" and [name for name in names[1:] if name in shipped] == shipped
    assert names.count("lit_data") == 1
    best = tmp_path / "mine.pdparams"
    shutil.copy(ROOT / "output/pretrained/lit_data/best.pdparams", best)
    names = shelf_of(pretrained=str(best), weights_named=True).names
    assert names[0] == "lit_data: mine.pdparams" and "lit_data" in names[1:]
    run = tmp_path / "broken"
    run.mkdir()
    (run / "config.yaml").write_text("MODEL: {NAME: t2t}")
    (run / "best.pdparams").write_bytes(b"")
    models = shelf_of("OUTPUT", str(tmp_path), pretrained=str(best), weights_named=True)
    assert models.names == ["lit_data: mine.pdparams", "broken"]
    assert list(models.ask(models.names[0], shelf.examples))[3] == str(min((ROOT / "lit_data/val/3").iterdir()))
    with pytest.raises(UserError, match="is empty"):
        models.ask("broken", shelf.examples)


def test_examples_are_pictures_that_can_be_read(tmp_path):
    folder = tmp_path / "validation"
    for digit in "01234":
        (folder / digit).mkdir(parents=True)
    for name in ("0/.DS_Store", "0/Thumbs.db", "1/c.png", "2/notes.txt"):
        (folder / name).write_text("no picture")
    (folder / "0/a").mkdir()
    for name in ("0/b.JPEG", "3/d.png"):
        shutil.copy(THREE, folder / name)
    (folder / ".hidden").mkdir()
    models = shelf_of("DATA.PATH", str(tmp_path))
    found = models.ask("lit_data", shelf.examples)
    assert [str(Path(path).relative_to(folder)) for path in found] == ["0/b.JPEG", "3/d.png"]
    shutil.rmtree(folder)
    assert models.ask("lit_data", shelf.examples) == {}


def test_labels_say_the_data_and_the_accuracy(tmp_path):
    labels = shelf_of().labels
    assert labels["lit_data"] == "lit_data · 99.17%" and labels["cifar10"] == "cifar10 · CIFAR-10 · 70.97%"
    assert labels["cifar10_seven"] == "cifar10_seven · CIFAR-10 · 59.39%"  # VAL.BEST ema; the raw ones had 59.96%
    weights = ROOT / "output/pretrained/lit_data/best.pdparams"
    named = shelf_of(pretrained=str(weights), weights_named=True).labels
    assert named["lit_data"] == "lit_data · 99.17%"
    for name, metrics in (("new", '{"epoch": 1, "lr": 0.1}\n'), ("bad", "{}{}\n"), ("none", "")):
        shutil.copytree(weights.parent, tmp_path / name)
        (tmp_path / name / "metrics.jsonl").write_text(metrics)
    labels = shelf_of("OUTPUT", str(tmp_path), pretrained=str(weights), weights_named=True).labels
    assert list(labels.values()) == ["lit_data · 99.17%", *(f"{name} · lit_data" for name in ("bad", "new", "none"))]


def test_examples_are_shown_without_the_data():
    models = shelf_of()
    found = models.ask("cifar10", shelf.examples)
    assert list(map(Path, found)) == EXAMPLES and len(EXAMPLES) == 6
    assert "ship" in EXAMPLES[-1].parts and set(models.ask("cifar10_seven", shelf.examples)) == set(list(found)[:5])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_a_weak_answer_is_questioned(layout, models, path):
    _, (answer,), *_, notes = layout.Actions(models).answer("cifar10_augment", [str(path)], "gradient")
    is_weak = max(answer.top.values()) < layout.LIKELY
    assert is_weak == (path.parent.name == "dog")  # which it takes for a frog, at 0.35
    assert notes["visible"] == is_weak
    names = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"
    line = f"no class reaches 50%: is this the model's kind of picture? It knows {names}"
    assert notes["value"] == (line if is_weak else "")


def test_attention_is_that_of_the_model_that_answered(layout, models):
    act = layout.Actions(models)
    _, answers, *_, expected, _ = act.answer("lit_data", [str(THREE)], "gradient")
    # The visitor has picked another model since, with pictures of another size and other classes.
    act.answer("cifar10_seven", [str(THREE)], "gradient")
    assert answers[0].model == "lit_data"
    assert act.draw(answers, 0, "gradient", "three")[0] == expected
    assert act.draw(answers, 0, "gradient", "airplane")[0] == expected
    *_, image, notes = act.choose(answers, "gradient", argparse.Namespace(index=0))
    assert image == expected and not notes["visible"]


def test_the_map_of_a_pit_covers_the_pixels_of_its_tokens():
    model = opened_run("lit_data_pit")
    pixels, _ = shelf.look(model, [THREE])[0][0]
    for method, block in (("rollout", 0), ("last block", -1)):
        drawn = shelf.attention(model, pixels, method, "three")
        images = paddle.to_tensor(to_input(pixels[None], model.predictor.metadata))
        maps = attention_maps(model.model, images)
        values = rollout(maps, model.model) if block == 0 else on_grid(maps[-1].mean(axis=1)[:, 0], model.model)
        box = token_box(model.model, block)
        assert drawn == overlay(to_image(pixels), values[0].numpy(), box=box)
    assert token_box(model.model, 0) == (1, 1, 15, 15) != box


def test_one_thread_computes_for_all_visitors():
    models, threads = shelf_of(), set()
    source = models.sources["lit_data"]
    opened = []
    models.sources["lit_data"] = lambda: opened.append(1) or source()

    def question(model, path):
        threads.add(threading.get_ident())
        return shelf.look(model, [path])[0][0][1]

    with ThreadPoolExecutor(8) as visitors:
        found = list(visitors.map(lambda path: models.ask("lit_data", question, path), [THREE, SEVEN] * 8))
    assert opened == [1] and len(threads) == 1
    for path, answers in ((THREE, found[::2]), (SEVEN, found[1::2])):
        right = pytest.approx(expected(path), abs=2e-6)
        assert all(top == right for top in answers)


def test_class_names_are_unique():
    metadata = argparse.Namespace(classes=["crane", "ox", "crane"])
    opened = argparse.Namespace(predictor=argparse.Namespace(metadata=metadata))
    assert shelf.class_names(opened) == ["crane (0)", "ox", "crane (2)"]


def test_exported_model_has_no_attention(layout):
    models = shelf_of()
    models.sources["lit_data"] = lambda: dataclasses.replace(opened_run("lit_data"), model=None)
    *_, bars, _, image, notes = layout.Actions(models).answer("lit_data", [str(THREE)], "gradient")
    assert next(iter(bars)) == "three" and image is None
    assert notes["value"] == "an exported model does not show its attention"


def test_engine_is_that_of_the_option(tmp_path):
    models = shelf_of("OUTPUT", str(tmp_path), engine="onnxruntime")
    with pytest.raises(UserError, match="lit_data.onnx not found for --engine onnxruntime"):
        models.ask("lit_data", shelf.examples)


def test_new_pictures_are_drawn_by_the_chosen_method(layout, models):
    images = []
    for method in METHODS:
        *_, image, _ = layout.Actions(models).answer("lit_data", [str(THREE)], method)
        pixels = models.look("lit_data", [THREE])[0][0].pixels
        assert image == models.ask("lit_data", shelf.attention, pixels, method, "three")
        assert image not in images
        images.append(image)


def test_too_many_pictures_are_reported(layout):
    most = layout.MAX_PICTURES
    paths = sorted(map(str, (ROOT / "lit_data/val").glob("*/*.png")))[: most + 3]
    _, answers, *_, notes = layout.Actions(shelf_of("VAL.BATCH_SIZE", "5")).answer("lit_data", paths, "gradient")
    assert len(answers) == most
    assert answers[-1].top == pytest.approx(expected(paths[most - 1]), abs=2e-6)
    assert notes["value"] == f"only the first {most} of {most + 3} pictures are shown"
