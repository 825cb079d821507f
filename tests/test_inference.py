"""Paddle Inference computes the right logits from an exported file, with its defaults, with and without oneDNN."""

import numpy as np
import paddle
import pytest
from paddle import inference
from test_fold import KINDS, small_model
from test_library import first_of_each_kind

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.deploy import export as exporter
from t2t_vit.deploy import fold
from t2t_vit.deploy.export import export_model
from t2t_vit.models import pit, t2t
from t2t_vit.models.zoo import create_model, list_models

CFG = load_config("configs/lit_data.yaml")


def toggle_onednn(config):
    """With oneDNN if that is not the default, or without it."""
    if config.mkldnn_enabled():
        config.disable_mkldnn()
    else:
        config.enable_mkldnn()


SETTINGS = {
    "default": lambda config: None,
    "other oneDNN": toggle_onednn,
    "not optimised": lambda config: config.switch_ir_optim(False),
}


def differences(model, folder, batch, counts, settings):
    """{setting: largest difference of the logits from the model's, over the largest} of a folded model."""
    shape = [model.in_chans, *model.image_size]
    spec = paddle.static.InputSpec([batch, *shape], "float32", "images")
    paddle.jit.save(fold.fold(model), str(folder / "x"), input_spec=[spec])
    images = [np.random.default_rng(1).normal(size=(count, *shape)).astype("float32") for count in counts]
    with paddle.no_grad():
        expected = [model(paddle.to_tensor(part)).numpy() for part in images]
    found = {}
    for name in settings:
        config = inference.Config(str(folder / f"x{exporter._PROGRAM}"), str(folder / "x.pdiparams"))
        config.disable_glog_info()
        SETTINGS[name](config)
        predictor = inference.create_predictor(config)
        pairs = [(answer(predictor, part), logits) for part, logits in zip(images, expected)]
        found[name] = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    return found


def answer(predictor, images):
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(images)
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_the_right_logits(tmp_path, kind):
    model = small_model(kind)
    for batch, counts, settings in ((1, [1], ["default"]), (None, [2, 1, 5], SETTINGS)):
        found = differences(model, tmp_path, batch, counts, settings)
        assert max(found.values()) < 5e-6, (batch, found)


def distinct_variants():
    """Names of the variants that differ in more than their depth or image size."""
    seen = {}
    for name in list_models():
        variant = {**t2t.VARIANTS, **pit.VARIANTS}[name].items()
        sizes = {key: value for key, value in variant if key not in ("depth", "image_size")}
        seen.setdefault((name[:3], str(sizes)), name)
    return list(seen.values())


@pytest.mark.parametrize("name", distinct_variants())
def test_every_variant_gives_the_right_logits(tmp_path, name):  # at its own width
    paddle.seed(3)
    shallow = dict(depth=(1, 1, 1) if name.startswith("pit") else 1)
    shallow = dict(stages=(1, 1)) if name == "t2t_vit_dense" else shallow
    model = create_model(name, **shallow, num_classes=10, image_size=64)
    model.eval()
    settings = ["default", "other oneDNN"] if name in first_of_each_kind() else ["default"]
    found = differences(model, tmp_path, None, [2], settings)
    assert max(found.values()) < 5e-6, found


def test_a_model_that_differs_with_onednn_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "open_predictor", misread_with_onednn)
    with pytest.raises(UserError, match="differ by .* nothing was written"):
        export_model(small_model("pit"), CFG, tmp_path, "paddle")
    assert not list(tmp_path.iterdir())


def misread_with_onednn(engine, path, onednn, open_predictor=exporter.open_predictor):
    predictor = open_predictor(engine, path, onednn=onednn)
    run = predictor.run
    predictor.run = lambda images: run(images) + (0.01 if onednn else 0)
    return predictor
