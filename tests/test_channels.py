"""Weights for colour images in models for grey ones, and the other way round."""

import numpy as np
import paddle
import pytest
from conftest import ROOT

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.deploy.open_model import open_weights
from t2t_vit.deploy.predict import predict_batch
from t2t_vit.models.recording import outputs_of
from t2t_vit.models.zoo import create_model
from t2t_vit.weights import checkpoint
from t2t_vit.weights.load import load_pretrained

T2T = {"depth": 1, "embed_dim": 64}
MODELS = [("t2t_vit_7", T2T), ("t2t_vit_7", {**T2T, "tokens_type": "transformer"}),
          ("t2t_vit_7", {**T2T, "tokens_type": "convolution"}), ("pit_ti", {})]  # fmt: skip


def trained(name, options, in_chans):
    """A model whose norms and biases are not those of a fresh one."""
    paddle.seed(0)
    model, random = create_model(name, in_chans=in_chans, **options), np.random.default_rng(0)
    for value in model.state_dict().values():
        if value.ndim == 1:
            value.set_value(paddle.to_tensor(random.uniform(-1, 1, value.shape).astype("float32")))
    model.eval()
    return model


def answers(model, grey):
    """The output of the first layer, which depends on the picture most, and the logits."""
    with paddle.no_grad(), outputs_of([model.stages()[0].layer]) as first:
        logits = model(paddle.to_tensor(np.repeat(grey, model.in_chans, axis=1)))
    return first[0].numpy(), logits.numpy()


@pytest.mark.parametrize("before, after", [(3, 1), (1, 3)])
@pytest.mark.parametrize("name, options", MODELS, ids=["performer", "transformer", "convolution", "pit"])
def test_grey_images_get_the_same_answer(tmp_path, name, options, before, after):
    options = {"image_size": 32, "num_classes": 5, **options}
    source, model = trained(name, options, before), create_model(name, in_chans=after, **options)
    checkpoint.save(tmp_path / "w.pdparams", source.state_dict())
    load_pretrained(model, tmp_path / "w.pdparams")
    model.eval()
    grey = np.random.default_rng(1).standard_normal((3, 1, 32, 32)).astype("float32")
    expected, found = answers(source, grey), answers(model, grey)
    assert np.abs(expected[0] - expected[0][:1]).max() > 0.01 * np.abs(expected[0]).max()  # the pictures differ
    for one, other in zip(expected, found):
        assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()


def test_large_shifts_are_warned_of(tmp_path, warned):
    options = {"image_size": 32, "num_classes": 5, **MODELS[1][1]}
    source, model = trained("t2t_vit_7", options, 3), create_model("t2t_vit_7", in_chans=1, **options)
    bias = source.stages()[0].layer.norm1.bias
    for factor, message in ((1, None), (1e4, "the first layer may be imprecise: its LayerNorm gets shifts up to ")):
        bias.set_value(bias * factor)
        checkpoint.save(tmp_path / "w.pdparams", source.state_dict())
        load_pretrained(model, tmp_path / "w.pdparams")
        assert message in warned.text if message else not warned.text


def test_a_grey_picture_file_gets_the_same_answer():
    picture, answers = ROOT / "lit_data/val/3/0045.png", []
    for channels in (1, 3):
        values = [("DATA.CHANNELS", channels), ("DATA.MEAN", [0.5] * channels), ("DATA.STD", [0.25] * channels)]
        cfg = load_config(ROOT / "configs/lit_data.yaml", [(key, str(value)) for key, value in values])
        opened = open_weights(cfg, ROOT / "output/pretrained/lit_data/best.pdparams")
        answers.append(predict_batch(opened.predictor, [picture], cfg, top_k=10)[picture])
    assert answers[0]["class_id"] == answers[1]["class_id"] == 3
    one, three = ({top["class_id"]: top["probability"] for top in answer["top"]} for answer in answers)
    assert len(one) == 10 and all(abs(one[key] - three[key]) < 2e-6 for key in one)


def test_other_numbers_of_channels_are_refused(tmp_path):
    options = {"image_size": 32, "num_classes": 5}
    checkpoint.save(tmp_path / "w.pdparams", create_model("pit_ti", in_chans=3, **options).state_dict())
    with pytest.raises(UserError, match=r"conv.weight is \[64, 3, 16, 16\], the model's is \[64, 4, 16, 16\]"):
        load_pretrained(create_model("pit_ti", in_chans=4, **options), tmp_path / "w.pdparams")
