"""t2t_vit.preprocess gives the images that val.py and predict.py give their model."""

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle import nn
from PIL import Image

import t2t_vit
from t2t_vit.common.errors import UserError
from t2t_vit.config import default_config, load_config
from t2t_vit.data.batch import Normalize
from t2t_vit.data.classes import ClassList
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import EvalLoader
from t2t_vit.deploy.engines import Predictor
from t2t_vit.deploy.metadata import Metadata
from t2t_vit.deploy.predict import predict_batch
from t2t_vit.models.zoo import create_model
from t2t_vit.weights import checkpoint

RUN = ROOT / "output/pretrained/lit_data"


@pytest.fixture
def rotated(tmp_path):
    """A picture of a phone: not square, in colour, with an EXIF orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    return tmp_path / "phone.png"


def fed_to_the_model(picture, cfg):
    """What predict.py gives the engine for a picture, float32 (C, S, S)."""
    fed, names = [], ("a", "b")

    def run(images):
        fed.append(images)
        return np.zeros((len(images), 2), np.float32)

    metadata = Metadata.of(cfg, ClassList(names, names, ""), "fp32", batch_size=0)
    predict_batch(Predictor(run, metadata), [str(picture)], cfg, top_k=1)
    return fed[0][0]


SOURCES = [
    "t2t_vit_7",
    "pit_ti",
    "t2t_vit_14_384",
    "t2t_vit_7.t2t_paddle",
    "configs/cifar10.yaml",
    RUN / "best.pdparams",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_picture_is_prepared_as_for_predict(source, rotated):
    prepare = t2t_vit.preprocess(source)
    expected, data = fed_to_the_model(rotated, prepare.cfg), prepare.cfg.DATA
    assert expected.shape == (data.CHANNELS, data.IMAGE_SIZE, data.IMAGE_SIZE)
    with Image.open(rotated) as opened:
        for found in (prepare(rotated), prepare(str(rotated)), prepare(opened)):
            assert found.dtype == np.float32 and (found == expected).all()
        assert opened.getexif()[0x0112] == 6  # the caller's image does not change


def test_the_source_sets_the_transform():
    found = {str(source): t2t_vit.preprocess(source).cfg for source in SOURCES}
    assert [cfg.DATA.IMAGE_SIZE for cfg in found.values()] == [224, 224, 384, 224, 32, 16]
    assert [cfg.VAL.CROP_PCT for cfg in found.values()] == [0.9, 0.875, 0.9, 0.9, 1.0, 1.0]
    assert [cfg.VAL.CROP_MODE for cfg in found.values()].index("squash") == 3
    cfg = load_config("configs/finetune.yaml")  # leaves size, mean and channels to the weights
    assert t2t_vit.preprocess(cfg).cfg.DATA.MEAN == default_config().DATA.MEAN


def test_weights_of_others_get_the_transform_of_their_variant(tmp_path):
    weights = create_model("pit_ti", image_size=104, num_classes=3).state_dict()
    checkpoint.save(tmp_path / "theirs.pdparams", weights)
    cfg = t2t_vit.preprocess(tmp_path / "theirs.pdparams").cfg
    assert (cfg.MODEL.NAME, cfg.DATA.IMAGE_SIZE, cfg.VAL.CROP_PCT) == ("pit_ti", 104, 0.875)
    patches = create_model("t2t_vit_7", tokens_type="patch", image_size=64, num_classes=3).state_dict()
    checkpoint.save(tmp_path / "patches.pdparams", patches)
    cfg = t2t_vit.preprocess(tmp_path / "patches.pdparams").cfg
    assert (cfg.MODEL.NAME, cfg.MODEL.T2T.TOKENS_TYPE, cfg.DATA.IMAGE_SIZE) == ("t2t_vit_7", "patch", 64)
    with pytest.raises(UserError, match="t2t_vit_15.*did you mean .*t2t_vit_14"):
        t2t_vit.preprocess("t2t_vit_15")


def test_mistakes_of_preprocess_are_one_line():
    kinds = "preprocess needs a name, a file, a URL or the result of load_config, not "
    for source, kind in ((nn.Linear(2, 2), "Linear"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"^{kinds}{kind}$"):
            t2t_vit.preprocess(source)
    with pytest.raises(UserError, match="lit_data.onnx is an exported model: give the weights that it was exported"):
        t2t_vit.preprocess("lit_data.onnx")
    with pytest.raises(TypeError, match="^a path or a PIL image is needed, not ndarray$"):
        t2t_vit.preprocess("t2t_vit_7")(np.zeros((8, 8, 3), np.uint8))


def test_pictures_are_prepared_as_for_val():
    cfg = load_config("configs/lit_data.yaml", [("DATA.NUM_WORKERS", "0"), ("VAL.BATCH_SIZE", "8")])
    split, prepare = load_data(cfg, ["val"])[1]["val"], t2t_vit.preprocess(cfg)
    batch, _ = next(iter(EvalLoader(split, cfg)))
    expected = Normalize(cfg)(batch).numpy()
    assert all((prepare(path) == image).all() for path, image in zip(split.paths, expected))


def test_paddle_vision_takes_the_transform():
    prepare = t2t_vit.preprocess(RUN / "best.pdparams")
    folder = paddle.vision.datasets.DatasetFolder(str(ROOT / "lit_data/val"), transform=prepare)
    batch, labels = next(iter(paddle.io.DataLoader(folder, batch_size=4)))
    assert (batch.numpy()[1] == prepare(folder.samples[1][0])).all() and labels.shape == [4]


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "1", "I;16", "CMYK"])
def test_images_of_pillow_are_converted_like_files(mode, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    image = Image.fromarray(pixels) if mode == "RGBA" else Image.fromarray(pixels[..., :3])
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file)
    prepare = t2t_vit.preprocess("configs/cifar10.yaml")
    assert (prepare(image) == prepare(file)).all()


def test_an_image_of_pillow_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "cut.png").write_bytes((ROOT / "lit_data/val/3/0045.png").read_bytes()[:90])
    prepare = t2t_vit.preprocess("configs/lit_data.yaml")
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(UserError, match="image .*cut.png cannot be read: "):
        prepare(cut)
