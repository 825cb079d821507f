"""Options and config keys of other programs are rewritten or refused; ours stay as they are."""

import argparse
import json
import re
import shutil

import pytest
from conftest import ROOT, error_line, tool
from test_commands import QUICK

import benchmark
import export
import predict
import train
import val
from t2t_vit import cli
from t2t_vit.common.errors import UserError
from t2t_vit.config import all_keys, load_config
from t2t_vit.spellings import KEYS, OPTIONS, take_data_folder, translate

COMMANDS = {module.__name__: module for module in (train, val, predict, export, benchmark)}


def translated(line):
    """A command line in our words; its first word names the command."""
    name, *words = line.split()
    parser = COMMANDS[name].parser()
    parser.prog = f"{name}.py"
    return " ".join(translate(words, parser))


@pytest.mark.parametrize(
    "theirs, ours",
    [
        # PaddleViT
        (
            "val -cfg=./configs/t2t_vit_7.yaml -dataset=imagenet2012 -batch_size=16 -data_path=imagenet/val -eval "
            "-pretrained=model/t2t_vit_7",
            "--config ./configs/t2t_vit_7.yaml --batch-size=16 --data-path=imagenet/val --pretrained=model/t2t_vit_7",
        ),
        ("train -cfg x.yaml -dataset imagenet2012 -amp -accum_iter 2", "--config x.yaml TRAIN.AMP O1 "
         "TRAIN.ACCUM_STEPS 2"),
        ("train -resume=latest -image_size=384 -output=o", "--resume=latest DATA.IMAGE_SIZE 384 --output=o"),
        ("train -batch_size_eval=8 -teacher_model_path=t", "VAL.BATCH_SIZE 8 DISTILL.WEIGHTS t"),
        # paddle_pit
        ("train -cfg=./configs/pit_ti.yaml -save_path=output", "--config ./configs/pit_ti.yaml --output output"),
        ("predict -pretrained=output/Best_PiT -img_path=x.JPEG", "--pretrained=output/Best_PiT x.JPEG"),
        # MindSpore
        ("train --config_path x.yaml --extra --batch_size 48 --num_parallel_workers 8",
         "--config x.yaml --batch-size 48 DATA.NUM_WORKERS 8"),
        ("train --amp_level O2 --base_lr 1e-3 --warmup_length 5", "TRAIN.AMP O2 TRAIN.BASE_LR 1e-3 "
         "TRAIN.WARMUP_EPOCHS 5"),
        ("val --checkpoint x.ckpt --extra --data_url /imagenet/", "--pretrained x.ckpt --data-path /imagenet/"),
        ("predict DATA --checkpoint CKPT --arch t2t_vit_19", "DATA --pretrained CKPT --config configs/t2t_vit_19.yaml"),
        ("train --config_path X.yaml --arch t2t_vit_19", "--config X.yaml MODEL.NAME t2t_vit_19"),
        # official
        ("train data --model t2t_vit_14 -j 4 --warmup-epochs 5 --model-ema-decay 0.999 --aa v0 --opt adamw",
         "data --config configs/t2t_vit_14.yaml DATA.NUM_WORKERS 4 TRAIN.WARMUP_EPOCHS 5 TRAIN.EMA_DECAY 0.999 "
         "AUG.AUTO_AUGMENT v0 TRAIN.OPTIMIZER adamw"),
        ("train data --reprob 0.1 --smoothing=0.2 --train-interpolation bicubic --log-interval 9",
         "data AUG.ERASE_PROB 0.1 TRAIN.LABEL_SMOOTHING 0.2 AUG.INTERPOLATION bicubic TRAIN.LOG_EVERY 9"),
        ("val path/to/data --model t2t_vit_14 -b 100 --eval_checkpoint ckpt",
         "path/to/data --config configs/t2t_vit_14.yaml --batch-size 100 --pretrained ckpt"),
        ("train data --model t2t_vit_7 -b 64 --lr 1e-3 --weight-decay .03 --amp --img-size 224",
         "data --config configs/t2t_vit_7.yaml --batch-size 64 TRAIN.BASE_LR 1e-3 TRAIN.WEIGHT_DECAY .03 TRAIN.AMP O1 "
         "DATA.IMAGE_SIZE 224"),
    ],
)  # fmt: skip
def test_options_of_other_programs_are_rewritten(theirs, ours, capsys):
    assert translated(theirs) == ours
    assert capsys.readouterr().err == f"note: read as {theirs.split()[0]}.py {ours}\n"


@pytest.mark.parametrize(
    "line",
    [
        "train --config x.yaml --batch-size 4 TRAIN.EPOCHS 3 --resume none --force",
        "val --split train --batch-size=4 MODEL.QK_SCALE -1",
        "predict a.png --output runs",
        "val --no-such-flag -x -cfg",  # the last option has no value
        "val -eval=7",
        "train -eval",
        "predict -eval",
    ],
)
def test_our_own_and_unknown_words_are_unchanged(line, capsys):
    assert translated(line) == " ".join(line.split()[1:])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("line", ["train --epochs 310", "train --clip_grad_norm 1.0"])
def test_options_without_an_equivalent_are_refused(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        translated(line)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {line.split()[1]} is an option of another program; here: TRAIN." in error


@pytest.mark.parametrize("rank, notes", [("0", 2), ("1", 0)])
def test_only_the_main_process_prints_the_new_command(rank, notes, monkeypatch, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", rank)
    assert translated("train -batch_size 8") == "--batch-size 8"
    take_data_folder(argparse.Namespace(opts=[str(ROOT)], data_path=None))
    assert capsys.readouterr().err.count("note: read as") == notes


def test_every_equivalent_exists():
    ours = set(all_keys())
    known = {option for module in COMMANDS.values() for option in module.parser()._option_string_actions}
    for name, new in [*OPTIONS.items(), *KEYS.items()]:
        first = new.replace(",", "").split()[0] if new not in ("", "{}") else ""
        assert not first or first in (known if first.startswith("-") else ours), name
        for key in re.findall(r"\b[A-Z]+\.[A-Z0-9_.]*[A-Z]", new):
            assert key in ours, name
    assert not ours & set(KEYS)


def test_a_config_of_another_repository_is_refused_with_our_keys(tmp_path):
    path = tmp_path / "t2t_vit_7.yaml"
    path.write_text(
        "DATA_PATH: {TRAIN_DATASET_LABEL_PATH: t.txt}\nTRAIN: {VAL_BATCH_SIZE: 64}\nSCHEDULER: {END_LR: 5e-4}\n"
    )
    line = error_line("val", "--config", path)
    assert line == (
        f"error: {path} has keys of another program, which must be renamed or removed: "
        "DATA_PATH.TRAIN_DATASET_LABEL_PATH (here: DATA.TRAIN_LIST), TRAIN.VAL_BATCH_SIZE (here: VAL.BATCH_SIZE), "
        "SCHEDULER.END_LR (here: TRAIN.MIN_LR)"
    )
    path.write_text("SCHEDULER: {NUM_EPOCHS: 300}\nTRAIN: {NUM_EPOCHS: 300}\nepochs: 310\n")
    with pytest.raises(UserError) as error:
        load_config(path)
    assert (
        str(error.value).count("(here: TRAIN.EPOCHS, and set TRAIN.COOLDOWN_EPOCHS 0 if this is the total number") == 3
    )
    path.write_text("base_lr: 0.001\narch: t2t_vit_19\ndump_graph: False\n")
    named = r"base_lr \(here: TRAIN.BASE_LR\), arch \(here: MODEL.NAME\), dump_graph$"
    with pytest.raises(UserError, match=named):
        load_config(path)


def test_keys_of_paddlevits_pit_are_named(tmp_path):
    path = tmp_path / "pit_ti.yaml"
    path.write_text(
        "DATA: {IMAGE_SIZE: 224}\nMODEL: {NAME: pit_ti, PATCH_SIZE: 16, STRIDE: 8, BASE_DIMS: [32, 32, 32], "
        "DEPTH: [2, 6, 4], NUM_HEADS: [2, 4, 8]}\nTRAIN: {DISTILLATION_TYPE: hard, OPTIMIZER: {NAME: AdamW}}\n"
    )
    with pytest.raises(UserError) as error:
        load_config(path)
    for pair in (
        "MODEL.PATCH_SIZE (here: MODEL.PIT.PATCH_SIZE)",
        "MODEL.STRIDE (here: MODEL.PIT.STRIDE)",
        "MODEL.BASE_DIMS (here: MODEL.PIT.BASE_DIMS)",
        "MODEL.DEPTH (here: MODEL.T2T.DEPTH, or MODEL.PIT.DEPTH of a PiT)",
        "MODEL.NUM_HEADS (here: MODEL.T2T.NUM_HEADS, or MODEL.PIT.HEADS of a PiT)",
        "TRAIN.DISTILLATION_TYPE (here: DISTILL.TYPE)",
        "TRAIN.OPTIMIZER.NAME (here: TRAIN.OPTIMIZER, adamw or sgd)",
    ):
        assert pair in str(error.value)


def test_paddlevits_and_the_official_evaluation_run(tmp_path):
    weights = tmp_path / "digits"  # .pdparams may be left out
    shutil.copy(ROOT / "output/pretrained/lit_data/best.pdparams", f"{weights}.pdparams")
    plain = tool("val", "--config", "configs/lit_data.yaml", "--pretrained", f"{weights}.pdparams")
    for line in (
        f"-cfg=configs/lit_data.yaml -dataset=imagenet2012 -batch_size=128 -data_path=lit_data/val -eval "
        f"-pretrained={weights}",
        f"lit_data --model lit_data -b 128 --eval_checkpoint {weights}",
    ):
        done = tool("val", *line.split())
        assert done.stdout.splitlines()[-1] == plain.stdout.splitlines()[-1]
        assert done.stderr.startswith("note: read as val.py ")
    assert done.stderr.endswith("note: read as --data-path lit_data\n")


def test_training_takes_the_folder_of_its_split(tmp_path):
    for split in ("train", "val"):
        for digit in "01":
            (tmp_path / f"data/{split}/{digit}").mkdir(parents=True)
            for picture in sorted((ROOT / f"lit_data/{split}/{digit}").iterdir())[:4]:
                shutil.copy(picture, tmp_path / f"data/{split}/{digit}")
    words = [*QUICK, "TRAIN.EPOCHS", 1, "TRAIN.BATCH_SIZE", 4, "MODEL.NUM_CLASSES", 2]
    tool("train", f"-data_path={tmp_path}/data/train", "-save_path", tmp_path, *words)
    assert f"PATH: {tmp_path}/data\n" in (tmp_path / "lit_data/config.yaml").read_text()
    shutil.rmtree(tmp_path / "data/val")
    line = error_line("train", "--data-path", tmp_path / "data/train", "--output", tmp_path / "b", *words)
    assert "train is not a val folder; give the folder above it" in line


def test_training_with_official_options_is_the_same():
    ours = "--config configs/lit_data.yaml --data-path lit_data --batch-size 50 TRAIN.BASE_LR 2e-3"
    theirs = "lit_data --model lit_data -b 50 --lr 2e-3"
    parser = train.parser()
    first, second = (cli._load(cli.parse_words(line.split(), parser), parser, None) for line in (ours, theirs))
    assert first == second and first.TRAIN.BASE_LR == 2e-3


def test_predict_writes_the_format_of_mindspore(tmp_path):
    for name in ("a", "b"):
        shutil.copy(ROOT / "lit_data/val/3/0045.png", tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_text("no image")
    target = tmp_path / "predictions.json"
    done = tool("predict", tmp_path, "--checkpoint", "output/pretrained/lit_data/best", "--json-ids", target, status=1)
    assert target.read_text() == f'{{\n "{tmp_path}/a.png": 3,\n "{tmp_path}/b.png": 3\n}}\n'
    assert re.match(rf"{tmp_path}/a.png \(class: 3\)", done.stdout)
    assert str(target) in error_line("predict", "--json-ids", target / "x.json")
    one = tool(
        "predict", "-pretrained=output/pretrained/lit_data/best", f"-img_path={tmp_path}/a.png", "--json-ids", target
    )
    assert one.stdout.splitlines()[-1] == "class_id is: 3"
    assert json.loads(target.read_text()) == {f"{tmp_path}/a.png": 3}


def test_missing_data_folder_is_an_error():
    done = tool("train", "/absent/imagenet", "--model", "t2t_vit_7", "--lr", "1e-3", status=1)
    assert done.stderr.splitlines()[-1].startswith("error: data folder /absent/imagenet not found")
