"""The settings: merging, unknown keys, wrong types, impossible values, names of earlier versions."""

import pytest

from t2t_vit import config, config_values
from t2t_vit.common.errors import UserError
from t2t_vit.config import default_config, load_config, with_keys
from t2t_vit.data.images import reading
from t2t_vit.training import resume


def write(folder, text, name="x.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def test_yaml_over_defaults_and_pairs_over_yaml(tmp_path):
    path = write(tmp_path, "TRAIN: {EPOCHS: 50, BASE_LR: 1e-4}\nDATA: {PATH: '2012'}\n")
    cfg = load_config(path, [("TRAIN.EPOCHS", "60"), ("TRAIN.BETAS", "[0.8, 0.9]"), ("DATA.NAME", "7")])
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.BASE_LR, cfg.TRAIN.BETAS) == (60, 1e-4, [0.8, 0.9])
    assert (cfg.DATA.PATH, cfg.DATA.NAME, cfg.NAME) == ("2012", "7", "x")
    assert default_config().TRAIN.EPOCHS == 300
    with pytest.raises(AttributeError):
        cfg.SEED = 1


@pytest.mark.parametrize("key", [key for key in config.all_keys() if key not in ("NAME", "SEED", "MODEL.QK_SCALE")])
def test_none_is_refused(key):
    default = default_config()
    for part in key.split("."):
        default = default[part]
    if not isinstance(default, str):  # a text may be "None"
        with pytest.raises(UserError, match=f"command line: {key} must be of type .*, not 'None'"):
            load_config(config.ROOT / "configs/t2t_vit_7.yaml", [(key, "None")])


@pytest.mark.parametrize("none", ["None", "null", "~"])
def test_qk_scale_may_be_none_as_in_peers_configs(tmp_path, none):
    cfg = load_config(write(tmp_path, f"MODEL: {{QK_SCALE: {none}}}\n"), [("MODEL.QK_SCALE", "None")])
    assert cfg.MODEL.QK_SCALE == 0.0
    assert load_config(write(tmp_path, f"MODEL: {{QK_SCALE: {none}}}\n")).MODEL.QK_SCALE == 0.0


def test_dumped_config_loads_to_the_same(tmp_path):
    cfg = load_config(config.ROOT / "configs/lit_data.yaml", [("SEED", "7")])
    assert load_config(write(tmp_path, cfg.dump(), "config.yaml")) == cfg


@pytest.mark.parametrize(
    "text, message",
    [
        ("TRAIN: {BASELR: 0.1}", "unknown key TRAIN.BASELR; did you mean TRAIN.BASE_LR"),
        ("epoch: 3", "unknown key epoch; did you mean TRAIN.EPOCHS"),
        ("TRAIN: 3", "unknown key TRAIN"),
        ("SEED: {A: 1}", "unknown key SEED.A"),
        ("TRAIN: {EPOCHS: ten}", "TRAIN.EPOCHS must be of type int, not 'ten'"),
        ("TRAIN: {EPOCHS: 2.5}", "TRAIN.EPOCHS must be of type int"),
        ("TRAIN: {BASE_LR: 1}", r"TRAIN.BASE_LR must be of type float \(write 1.0\)"),
        ("TRAIN: {EPOCHS:}", "TRAIN.EPOCHS must be of type int, not None"),
        ("DATA: {PATH: 3}", r'DATA.PATH must be of type str \(write "3"\), not 3'),
        ("TRAIN: [", "not valid YAML"),
        ("just words", "must contain KEY: value pairs"),
        ("!!python/object/apply:os.system ['touch /tmp/hostile']", "not valid YAML"),
        ("TRAIN: {WARMUP_EPOCHS: 300}", "TRAIN.WARMUP_EPOCHS is 300 but must be below TRAIN.EPOCHS 300"),
        ("DATA: {IMAGE_SIZE: -1}", "DATA.IMAGE_SIZE is -1 but must be 0 to 4096"),
        ("MODEL: {NUM_CLASSES: 1}", "MODEL.NUM_CLASSES is 1"),
        ("MODEL: {T2T: {SPLITS: [[3, 1], [3, 1]]}}", "MODEL.T2T.SPLITS"),
        ("DATA: {MEAN: [0.5]}", "DATA.MEAN .* list of 3 number"),
        ("AUG: {SCALE: [0.9, 0.1]}", "AUG.SCALE"),
        ("AUG: {INTERPOLATION: cubic}", "bilinear, bicubic or random"),
        ("AUG: {RATIO: [1.0e+300, 1.0e+308]}", "AUG.RATIO .* must be 0.01 to 100"),
        ("AUG: {REPEATS: 99999999999999999999}", "AUG.REPEATS .* 1 to 100"),
        ("DATA: {NUM_WORKERS: 1000000}", "DATA.NUM_WORKERS .* 0 to 256"),
        ("AUG: {CUTMIX: 0.0, CUTMIX_MINMAX: [0.2, 0.8]}", "AUG.CUTMIX is 0.0 but must be above 0.0"),
        ("AUG: {MIX_MODE: half}", "AUG.MIX_MODE is 'half' but must be batch, pair or elem"),
        ("AUG: {ERASE_MODE: noise}", "pixel, rand or const"),
        ("DATA: {ON_ERROR: ignore}", "DATA.ON_ERROR is 'ignore' but must be raise or skip"),
        ("VAL: {CROP_MODE: centre}", "center or squash"),
        ("DEVICE: tpu", "DEVICE is 'tpu' but must be cpu, gpu or gpu:N"),
        ("TRAIN:\n  EPOCHS: 3\nSEED: 1\nTRAIN:\n  BATCH_SIZE: 2", "TRAIN is given twice"),
        ("DEVICE: '7'", "DEVICE is '7'"),
        ("TRAIN: &x {A: *x}", "refers to itself, or expands to more than"),
        ("DATA: {MEAN: [.inf, 0, 0]}", "DATA.MEAN"),
        ("MODEL: {T2T: {MLP_RATIO: .inf}}", "MODEL.T2T.MLP_RATIO is inf"),
        ("MODEL: {T2T: {STAGES: [3, 0]}}", r"MODEL.T2T.STAGES is \[3, 0\] but must be a list of 1 to 65536"),
        ("VAL: {CROP_PCT: 1.0e-9}", "VAL.CROP_PCT"),
        ("NAME: ../x", "NAME"),
        ("NAME: pretrained", "NAME is 'pretrained' but must be another name"),
        ("OUTPUT: ''", "OUTPUT is '' but must be a folder"),
        ("DATA: {PATH: ''}", "DATA.PATH is '' but must be a folder"),
        ("TRAIN: {BASE_LR: .nan}", "TRAIN.BASE_LR is nan"),
        ("TRAIN: {OPTIMIZER: SGD}", "TRAIN.OPTIMIZER is 'SGD' but must be adamw or sgd"),
        ("TRAIN: {MOMENTUM: 1.0}", r"TRAIN.MOMENTUM is 1.0 but must be in \[0, 1\)"),
        ("TRAIN: {BACKBONE_LR: 1.0e-6}", "BACKBONE_LR is 1e-06 but must be 0.0, or TRAIN.MIN_LR 1e-05 or more"),
        ("TRAIN: {BACKBONE_LR: 1.0e-5, WARMUP_LR: 1.0e-4}", "BACKBONE_LR .* or TRAIN.WARMUP_LR 0.0001 or more"),
        ("TRAIN: {LAYER_DECAY: 0.0}", r"TRAIN.LAYER_DECAY is 0.0 but must be in \(0, 1\]"),
        ("TRAIN: {LAYER_DECAY: 1.5}", "TRAIN.LAYER_DECAY is 1.5"),
        ("TRAIN: {FREEZE: blocks.*}", "TRAIN.FREEZE must be of type list, not 'blocks.*'"),
        ("TRAIN: {FREEZE: [0]}", r"TRAIN.FREEZE is \[0\] but must be a list of patterns such as"),
        ("TRAIN: {FREEZE: ['!']}", "TRAIN.FREEZE is"),
        ("TRAIN: {SAMPLER: uniform}", 'TRAIN.SAMPLER is .uniform. but must be balanced, sqrt or ""'),
        ("TRAIN: {CLASS_WEIGHTS: auto, SAMPLER: sqrt}", r'CLASS_WEIGHTS .* must be "" if TRAIN.SAMPLER is set .sqrt.'),
        ("MODEL: {DROP_PATH_RATE: 1.5}", "MODEL.DROP_PATH_RATE"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text))


def test_missing_and_executable_configs_are_refused(tmp_path):
    with pytest.raises(UserError, match="absent.yaml not found; configs/ contains .*lit_data.yaml"):
        load_config("absent.yaml")
    marker = tmp_path / "executed"
    hostile = write(tmp_path, f"open({str(marker)!r}, 'w')\ncfg = {{}}\n", "hostile.py")
    with pytest.raises(UserError, match="not YAML"):
        load_config(hostile)
    assert not marker.exists()


def test_every_number_has_an_interval_or_choices():
    checked = {*" ".join(keys for _, _, keys in config_values._NUMBERS).split(), *config_values._CHOICES}
    checked |= {f"MODEL.PIT.{key}" for key in ("BASE_DIMS", "DEPTH", "HEADS")}
    checked |= {"MODEL.T2T.SPLITS", "MODEL.T2T.STAGES", "TRAIN.FREEZE"}
    types = {key: type(config_values.value_of(default_config(), key)) for key in config.all_keys()}
    assert {key for key, kind in types.items() if kind in (int, float, list)} <= checked <= set(types)


@pytest.mark.parametrize("old, new", config_values.RENAMED.items())
def test_names_of_earlier_versions_are_accepted(tmp_path, capsys, old, new):
    config_values._note.cache_clear()
    section, leaf = old.split(".")
    path = write(tmp_path, f"{section}: {{{leaf}: 0.25}}\n")
    assert config_values.value_of(load_config(path), new) == 0.25
    assert config_values.value_of(load_config(write(tmp_path, "SEED: 1", "y.yaml"), [(old, "0.25")]), new) == 0.25
    assert capsys.readouterr().err == f"note: {old} is now called {new}\n"  # once in a process
    assert resume._config({"config": path.read_text()})[new] == 0.25  # of a state


def test_class_list_comes_with_the_package(tmp_path, capsys):
    config_values._note.cache_clear()
    assert config.class_list(default_config()).read_text().startswith("index\t")
    cfg = load_config(write(tmp_path, "DATA: {CLASSES: configs/imagenet1k_classes.tsv}\n"))
    assert cfg.DATA.CLASSES == "imagenet1k"
    assert capsys.readouterr().err == "note: DATA.CLASSES configs/imagenet1k_classes.tsv is now called imagenet1k\n"
    (tmp_path / "configs").mkdir()
    own = write(tmp_path / "configs", "", "imagenet1k_classes.tsv")
    cfg = load_config(write(tmp_path, f"DATA: {{CLASSES: {own}}}\n"))
    assert config.class_list(cfg) == own
    assert config.class_list(load_config(write(tmp_path, "DATA: {CLASSES: ''}\n"))) is None


@pytest.mark.parametrize(
    "name, is_imagenet",
    [("imagenet1k", True), ("/some/imagenet1k_classes.tsv", True), ("/some/imagenet1k", False), ("", False)],
)
def test_exif_auto_knows_imagenet_by_its_class_list(tmp_path, name, is_imagenet):
    cfg = load_config(write(tmp_path, f"DATA: {{CLASSES: '{name}'}}\n"))
    assert reading(cfg)["upright"] != is_imagenet


def test_relative_paths_of_a_yaml_start_at_the_repository():
    assert config.resolve("lit_data") == config.ROOT / "lit_data"
    assert str(config.resolve("/data/x")) == "/data/x"


@pytest.mark.parametrize("name", ["2012", "None", "1e3", "[1]", "True"])
def test_text_that_looks_like_a_number_stays_text(name):
    cfg = load_config("configs/lit_data.yaml", [("DATA.NAME", name)])
    again = with_keys(cfg, {"DATA.NAME": cfg.DATA.NAME})  # as an exported file's entries settle a config
    assert cfg.DATA.NAME == again.DATA.NAME == name
