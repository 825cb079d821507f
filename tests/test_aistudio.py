"""scripts/aistudio.sh with tiny archives, in folders that replace those of AI Studio."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ENVIRONMENT, ROOT, command_of
from test_unpack import CATS, DIGITS, DOGS, make_tar, tar_bytes

import aistudio_job
from t2t_vit.common import wheels
from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.config_values import to_seconds

TINY = ["DATA.IMAGE_SIZE", "32", "DATA.NUM_WORKERS", "0", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.COOLDOWN_EPOCHS", "0"]
SMALL = [
    *TINY,
    "MODEL.T2T.DEPTH",
    "1",
    "MODEL.T2T.EMBED_DIM",
    "32",
    "MODEL.T2T.NUM_HEADS",
    "1",
    "TRAIN.EMA_DECAY",
    "0.0",
]
STEP = ["--batch-size", "4", "TRAIN.ACCUM_STEPS", "1"]
IMAGES = {f"ILSVRC2012_w/train/{wnid}/{i}.JPEG": DIGITS[i] for wnid in (CATS, DOGS) for i in range(4)}
IMAGES.update({f"ILSVRC2012_w/val/{wnid}/{i}.JPEG": DIGITS[9 + i] for wnid in (CATS, DOGS) for i in range(2)})


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Variables that name folders below tmp_path, of which mounts/data79807 has a tiny ILSVRC2012_w.tar."""
    (tmp_path / "mounts/data79807").mkdir(parents=True)
    make_tar(tmp_path / "mounts/data79807/ILSVRC2012_w.tar", IMAGES)
    for name in ("mounts", "data", "runs", "best"):
        monkeypatch.setenv(f"JOB_{name.upper()}", str(tmp_path / name))
    for name in ("GPUS", "CUDA_VISIBLE_DEVICES", "JOB_ARCHIVES", "JOB_VAL_LIST", "JOB_STARTED", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(aistudio_job.wheels, "look", lambda: wheels.Machine([], None))
    return tmp_path


def job(folders, *words, cut_at=None, status=0, **variables):
    """Run scripts/aistudio.sh to its end, or send SIGTERM at the first line that starts with `cut_at`: its lines."""
    named = {f"JOB_{name.upper()}": str(folders / name) for name in ("mounts", "data", "runs", "best")}
    environment = {**ENVIRONMENT, **named, **variables}
    command = ["bash", str(ROOT / "scripts/aistudio.sh"), *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if cut_at and line.startswith(cut_at):
            process.send_signal(signal.SIGTERM)
    errors = process.stderr.read()
    assert process.wait(timeout=600) == status, f"{lines}\n{errors}"
    return lines if status == 0 else [line for line in errors.splitlines() if line.startswith("error: ")]


def decided(monkeypatch, *words):
    """Return the words and variables that the job passes to scripts/train.sh. Nothing is trained or unpacked."""
    calls = []
    monkeypatch.setattr(sys, "argv", ["aistudio_job.py", *map(str, words)])
    monkeypatch.setattr(aistudio_job, "unpack", lambda *_: None)
    monkeypatch.setattr(aistudio_job, "train", lambda *given: calls.append(given))
    aistudio_job.main(aistudio_job.parse())
    return calls[0]


# --- A job ---


def test_interrupted_job_continues_and_copies_the_best_model(folders):
    words = ["configs/t2t_vit_7.yaml", *STEP, *SMALL, "TRAIN.EPOCHS", "9999", "NAME", "cut"]
    first = job(folders, *words, cut_at="Epoch [3/9999], avg")
    assert f"{folders}/mounts/data79807/ILSVRC2012_w.tar: 12 images written, 0 already there" in first[0]
    assert any(line.startswith("stopped by SIGTERM after ") for line in first)
    assert f"continue with: JOB_MOUNTS={folders}/mounts JOB_DATA={folders}/data JOB_RUNS={folders}/runs " in first[-2]
    assert first[-2].endswith(f"bash {ROOT}/scripts/aistudio.sh {' '.join(words)} --resume auto")
    assert first[-1] == f"best model: {folders}/best/cut/best.pdparams"
    run, best = folders / "runs/cut", folders / "best/cut"
    names = ["best.pdparams", "classes.txt", "config.yaml", "cut.log", "metrics.jsonl", "times.jsonl"]
    assert sorted(path.name for path in best.iterdir()) == names
    assert (best / "best.pdparams").read_bytes() == (run / "best.pdparams").read_bytes()
    rows = len((best / "metrics.jsonl").read_text().splitlines())
    assert rows >= 2

    (best / "best.pdparams").write_bytes(b"of an earlier copy")
    second = job(folders, *words, cut_at="Epoch [", JOB_STARTED=str(int(time.time()) - 3600))
    assert second[0].endswith("ILSVRC2012_w.tar: already unpacked (recorded in " + f"{folders}/data/.unpacked.json)")
    assert any(line.startswith(f"resumed {run}/latest.pdparams: ") for line in second)
    assert 69 * 3600 < to_seconds(load_config(run / "config.yaml").TRAIN.TIME_LIMIT) <= 70 * 3600
    assert (best / "best.pdparams").read_bytes() == (run / "best.pdparams").read_bytes()
    assert len((best / "metrics.jsonl").read_text().splitlines()) >= rows
    assert sorted(path.name for path in best.iterdir()) == names


def test_job_with_the_original_archives_of_imagenet(folders, monkeypatch):
    shutil.rmtree(folders / "mounts/data79807")
    classes = {f"{w}.tar": tar_bytes({f"{w}_{i}.JPEG": DIGITS[i] for i in range(2)}) for w in (CATS, DOGS)}
    make_tar(folders / "mounts/ILSVRC2012_img_train.tar", classes)
    images = {f"ILSVRC2012_val_0000000{i}.JPEG": DIGITS[i] for i in (1, 2)}
    make_tar(folders / "mounts/ILSVRC2012_img_val.tar", images)
    (folders / "mounts/val_list.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(images)))
    (folders / "own.txt").write_text("".join(f"{name} 7\n" for name in images))

    def killed(words, _environment):
        run = folders / "own/t2t_vit_7"
        run.mkdir(parents=True)
        (run / "best.pdparams").write_bytes(b"weights")
        (run.parent / "t2t_vit_7.log").write_text(" ".join(words))
        return 137

    monkeypatch.setattr(sys, "argv", ["aistudio_job.py", "--output", str(folders / "own")])
    monkeypatch.setattr(aistudio_job, "train", killed)
    assert aistudio_job.main(aistudio_job.parse()) == 137  # the best model is copied however the training ends
    assert len(list(folders.glob("data/train/*/*.JPEG"))) == 4
    found = [path.parent.name for path in folders.glob("data/val/*/*.JPEG")]
    assert sorted(found) == ["n01440764", "n01443537"]
    assert sorted(path.name for path in (folders / "best/t2t_vit_7").iterdir()) == ["best.pdparams", "t2t_vit_7.log"]
    words = (folders / "best/t2t_vit_7/t2t_vit_7.log").read_text()
    assert words.startswith(
        f"configs/t2t_vit_7.yaml --output {folders}/own --data-path {folders}/data TRAIN.TIME_LIMIT"
    )
    assert not (folders / "runs").exists()
    monkeypatch.setenv("JOB_VAL_LIST", str(folders / "own.txt"))
    assert aistudio_job.val_list([folders / "mounts/x.tar"]) == str(folders / "own.txt")


def test_job_without_a_best_model_copies_nothing(folders):
    errors = job(folders, "--data-path", folders, *STEP, *SMALL, status=1)
    assert len(errors) == 1 and "train" in errors[0]
    assert not list((folders / "best/t2t_vit_7").iterdir())


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The file that stands for scripts/train.sh. Signals are handled as before after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    (tmp_path / "scripts").mkdir()
    monkeypatch.setattr(aistudio_job, "ROOT", tmp_path)
    yield tmp_path / "scripts/train.sh"
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("line, number", [
    ("kill -KILL $$", signal.SIGKILL), ("while sleep 0.1; do kill -TERM $PPID; done", signal.SIGTERM),
])  # fmt: skip
def test_exit_status_of_a_killed_training(script, line, number):
    script.write_text(line)
    assert aistudio_job.train([], None) == 128 + number


def test_signal_during_the_start_reaches_the_training(script, monkeypatch):
    def start(*args, start=subprocess.Popen, **options):
        child = start(*args, **options)
        signal.raise_signal(signal.SIGTERM)
        return child

    script.write_text("exec sleep 60")
    monkeypatch.setattr(aistudio_job.subprocess, "Popen", start)
    assert aistudio_job.train([], None) == 128 + signal.SIGTERM


def test_failed_unpacking_is_one_line(folders, monkeypatch):
    (folders / "broken.tar").write_bytes(b"no archive" * 100)
    monkeypatch.setenv("JOB_ARCHIVES", str(folders / "broken.tar"))
    monkeypatch.setattr(sys, "argv", ["aistudio_job.py"])
    with pytest.raises(UserError, match="broken.tar is damaged, incomplete or not a tar or zip archive"):
        aistudio_job.main(aistudio_job.parse())
    assert not (folders / "runs").exists()


def test_other_data_needs_no_archives(folders, monkeypatch):
    monkeypatch.setenv("JOB_MOUNTS", str(folders / "absent"))
    words, _ = decided(monkeypatch, "configs/lit_data.yaml")
    assert words == ["configs/lit_data.yaml", "--output", str(folders / "runs"), "TRAIN.TIME_LIMIT", "255599s"]
    words, _ = decided(monkeypatch, "--data-path", folders, *STEP)
    assert words.count("--data-path") == 1 and str(folders) in words


# --- What is found and decided ---


@pytest.fixture
def platform(tmp_path, monkeypatch):
    """Function that makes folders of the platform, in tmp_path instead of /, and returns those that a job uses."""
    for name in ("JOB_MOUNTS", "JOB_DATA", "JOB_RUNS", "JOB_BEST"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SCRIPT_JOB", "NOTEBOOK"):
        monkeypatch.setattr(aistudio_job, name, f"{tmp_path}{getattr(aistudio_job, name)}")

    def make(*folders):
        for folder in folders:
            (tmp_path / folder).mkdir(parents=True)
        return [path.removeprefix(str(tmp_path)) for path in aistudio_job.folders_here().values()]

    return make


def test_script_job_is_recognised(platform):
    job = "/root/paddlejob/workspace"
    found = platform("root/paddlejob/workspace", "home/aistudio/work")
    assert found == [f"{job}/train_data/datasets", f"{job}/imagenet", f"{job}/output/runs", f"{job}/output/best"]


def test_notebook_and_submitted_job_keep_different_folders(platform, monkeypatch):
    home = "/home/aistudio"
    data = [f"{home}/data", f"{home}/data/imagenet"]
    assert platform("home/aistudio/work") == [*data, f"{home}/work/runs", f"{home}/work/best"]
    assert platform("home/aistudio/output") == [*data, f"{home}/output/runs", f"{home}/output/best"]
    monkeypatch.setenv("JOB_BEST", "/kept")
    assert platform()[-1] == "/kept"
    monkeypatch.delenv("JOB_BEST")
    assert platform("home/aistudio/work/runs")[2:] == [f"{home}/work/runs", f"{home}/work/best"]


def test_other_machines_are_not_mistaken_for_the_platform(platform):
    assert platform() == ["", str(ROOT / "datasets/imagenet"), "", ""]


@pytest.mark.usefixtures("folders")
def test_job_without_a_gpu_stops_at_once(platform, tmp_path, monkeypatch, capsys):
    platform("home/aistudio/output")
    monkeypatch.setenv("JOB_RUNS", str(tmp_path / "runs"))
    for look in (wheels.Machine([], None), wheels.Machine([], None, "nvidia-smi failed")):
        monkeypatch.setattr(wheels, "look", lambda look=look: look)
        with pytest.raises(
            UserError, match="no GPU here .nvidia-smi .*: choose an environment with GPUs, or give --dev"
        ):
            decided(monkeypatch, "configs/lit_data.yaml")
    words, _ = decided(monkeypatch, "configs/lit_data.yaml", "--device", "cpu")
    assert words[:3] == ["configs/lit_data.yaml", "--device", "cpu"] and "gpu" not in words
    kept = f"AI Studio: runs in {tmp_path}/runs, best models in {tmp_path}/home/aistudio/output/best\n"
    assert capsys.readouterr().out.startswith(kept)


def test_two_machines_need_nnodes(folders, monkeypatch):
    words = ["--data-path", folders, *STEP]
    monkeypatch.setenv("PADDLE_TRAINERS", "10.0.0.1,10.0.0.2")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    line = "this job has 2 machines: .* NNODES=2 MASTER=10.0.0.1:8090 NODE_RANK=1 before the command on each machine"
    with pytest.raises(UserError, match=line):
        decided(monkeypatch, *words)
    for count in "21":
        monkeypatch.setenv("NNODES", count)
        decided(monkeypatch, *words)
    monkeypatch.delenv("NNODES")
    monkeypatch.setenv("PADDLE_TRAINERS", "10.0.0.1")
    decided(monkeypatch, *words)


LIGHT = ["Light_ILSVRC2012_part_0.tar", "Light_ILSVRC2012_part_1.tar"]


@pytest.mark.parametrize(
    "names, found",
    [
        (["data79807/ILSVRC2012_w.tar", "x/Light_ILSVRC2012_part_0.tar"], ["data79807/ILSVRC2012_w.tar"]),
        ([f"data114746/{LIGHT[1]}", f"data114241/{LIGHT[0]}"], [f"data114241/{LIGHT[0]}", f"data114746/{LIGHT[1]}"]),
        (["a/b/c/ILSVRC2012_w.tar"], ["a/b/c/ILSVRC2012_w.tar"]),
    ],
)
def test_archives_are_found_by_name(tmp_path, names, found):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert aistudio_job.find_archives(f"{tmp_path}/none:{tmp_path}") == [tmp_path / name for name in found]


def test_missing_archives_are_named(tmp_path, monkeypatch):
    for mounts, named in ((str(tmp_path), str(tmp_path)), ("", "JOB_MOUNTS, which is not set")):
        with pytest.raises(UserError, match=f"no complete ImageNet in {named}: mount data set 79807, or 114241 and 11"):
            aistudio_job.find_archives(mounts)
        (tmp_path / LIGHT[1]).touch()
    monkeypatch.setenv("JOB_ARCHIVES", "x.tar:y.tar")
    assert [str(path) for path in aistudio_job.find_archives("")] == ["x.tar", "y.tar"]


@pytest.mark.parametrize("cards", [8, 4, 1, 0])
def test_job_uses_all_cards(folders, monkeypatch, cards):
    monkeypatch.setattr(wheels, "look", lambda: wheels.Machine([wheels.Card("V100", (7, 0))] * cards, (470, 82)))
    given, environment = decided(monkeypatch)
    args = aistudio_job.parser().parse_intermixed_args(["--config", *given])
    assert environment.get("GPUS") == (",".join(map(str, range(cards))) if cards > 1 else None)
    assert args.device == ("gpu" if cards else None)  # not the CPU if PaddlePaddle does not find them
    assert args.config == "configs/t2t_vit_7.yaml" and args.data_path == str(folders / "data")


@pytest.mark.usefixtures("folders")
def test_user_chooses_gpus_and_batch(monkeypatch):
    monkeypatch.setenv("GPUS", "1,3")
    assert decided(monkeypatch, "configs/pit_ti.yaml")[1]["GPUS"] == "1,3"
    monkeypatch.delenv("GPUS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "GPUS" not in decided(monkeypatch)[1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert decided(monkeypatch)[1]["GPUS"] == "2,3"
    for gpus, given in (("0,1,2", []), ("0,1", ["--batch-size", 100])):
        monkeypatch.setenv("GPUS", gpus)
        with pytest.raises(UserError, match="TRAIN.GLOBAL_BATCH 512 is not a multiple of TRAIN.BATCH_SIZE"):
            decided(monkeypatch, *given)
    monkeypatch.setenv("NNODES", "two")
    with pytest.raises(UserError, match="NNODES is 'two' but must be a whole number"):
        decided(monkeypatch)


@pytest.mark.usefixtures("folders")
def test_time_limit_includes_unpacking(monkeypatch):
    assert 255_590 <= to_seconds(decided(monkeypatch)[0][-1]) <= 255_600
    monkeypatch.setenv("JOB_STARTED", str(int(time.time()) - 3600))
    assert 251_990 <= to_seconds(decided(monkeypatch)[0][-1]) <= 252_000
    assert 3_590 <= to_seconds(decided(monkeypatch, "TRAIN.TIME_LIMIT", "2h")[0][-1]) <= 3_600
    with pytest.raises(UserError, match="the time limit of this job, 1h, has passed"):
        decided(monkeypatch, "TRAIN.TIME_LIMIT", "1h")
    monkeypatch.setenv("JOB_STARTED", "yesterday")
    with pytest.raises(UserError, match="JOB_STARTED is 'yesterday' but must be a whole number"):
        decided(monkeypatch)


def test_old_spellings_are_accepted(folders, monkeypatch, capsys):
    words, _ = decided(monkeypatch, folders, "-cfg=configs/lit_data.yaml", "-batch_size", 8)
    assert words[:4] == [str(folders), "-cfg=configs/lit_data.yaml", "-batch_size", "8"]  # train.py reads them too
    read = f"{folders} --config configs/lit_data.yaml --batch-size 8"
    assert f"note: read as bash scripts/aistudio.sh {read}\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        decided(monkeypatch, "-eval")
    assert "unrecognized arguments: -eval" in capsys.readouterr().err


def test_folder_of_the_best_model_is_checked_first(folders, monkeypatch):
    (folders / "file").touch()
    monkeypatch.setenv("JOB_BEST", str(folders / "file"))
    with pytest.raises(OSError, match="file"):
        decided(monkeypatch)


def test_help_names_every_variable():
    text = aistudio_job.parser().format_help()
    assert all(name in text for name in ("GPUS", *aistudio_job.VARIABLES))


# --- What is uploaded ---


def test_code_of_a_job_is_small(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    command_of("aistudio.md", "mkdir -p /path/to/code ", tmp_path)
    files = [path for path in (tmp_path / "code").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 50e6 and (tmp_path / "code/scripts/aistudio.sh").is_file()
