"""Every command of the documents runs, the ImageNet-sized ones on a tiny stand-in."""

import functools
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import urllib.request

import in_process
import peers
import pytest
from conftest import ENVIRONMENT, ROOT, Page
from documents import ENGLISH, blocks

from t2t_vit import cli
from t2t_vit.bench.options import benchmark_parser
from t2t_vit.config import CLASS_LISTS
from t2t_vit.models.zoo import create_model
from t2t_vit.weights import checkpoint

IN_ORDER = True  # some commands read what those before them write

# Makes a training that would take days one step long.
TINY = "--batch-size 8 TRAIN.GLOBAL_BATCH 0 DATA.IMAGE_SIZE 32 DATA.NUM_WORKERS 0 VAL.EVERY 1"
TINY += " TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 TRAIN.COOLDOWN_EPOCHS 0"


# Published weights, by URL or name, stand for a file of the same model.
PUBLISHED = re.compile(
    r"https://github\.com/\S+?_T2T_ViT_(\d+)\.pth\.tar|(?<=--pretrained )t2t_vit_(\d+)(?:\.official)?(?=\s|$)"
)


def with_a_file(line):
    """Replace published weights in a command by a file, and add the config that a name has."""
    found = PUBLISHED.search(line)
    if not found:
        return line
    number = found[1] or found[2]
    config = "" if ".yaml" in line else f"--config configs/t2t_vit_{number}.yaml "
    return PUBLISHED.sub(f"/path/to/t2t_vit_{number}.pdparams", line.replace("--pretrained", f"{config}--pretrained"))


def commands():
    """The commands of all documents, each once, without comments."""
    lines = []
    for path in ENGLISH:
        lines += "\n".join(blocks(path, "bash")).replace("\\\n", "").splitlines()
        lines += re.findall(r"`((?:GPUS=\S+ )?(?:bash scripts|python tools)/[^`]+)`", path.read_text("utf-8"))
    lines = [with_a_file(re.sub(r"\s+#.*", "", line).strip()) for line in lines]
    # Not the tests themselves, nor what sets up the shell or installs packages.
    no_command = re.compile(r"export |source |pip install|.*test\.sh")
    return [line for line in dict.fromkeys(lines) if line and not no_command.match(line)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that stands in for the clone's parent: tiny ImageNet, weights, pictures."""
    folder = tmp_path_factory.mktemp("readme")
    digits = sorted((ROOT / "lit_data/val").glob("*/*.png"))
    wnids = [line.split("\t")[1] for line in CLASS_LISTS["imagenet1k"].read_text().splitlines()[1:]]
    for i, digit in enumerate(digits[::20]):
        for split in ("train", "val"):
            target = folder / "imagenet" / split / wnids[i]
            target.mkdir(parents=True)
            shutil.copy(digit, target / f"ILSVRC2012_{split}_{i + 1:08d}.JPEG")
    make_test_sets(folder, wnids, digits[0])
    make_cifar(folder, digits)
    make_pictures(folder / "pictures", digits)
    shutil.copy(digits[0], folder / "picture.png")
    shutil.copy(digits[0], folder / "photo.jpg")
    make_archives(folder, wnids, digits[:4])
    for file, name, depth in (
        ("t2t_vit_7", "t2t_vit_7", 1),
        ("t2t_vit_14", "t2t_vit_14", 1),
        ("Best_PiT", "pit_ti", [1, 1, 1]),
    ):
        checkpoint.save(folder / f"{file}.pdparams", create_model(name, image_size=32, depth=depth).state_dict())
    (folder / "pets.yaml").write_text(blocks(ROOT / "docs/extending.md", "yaml")[0].replace("/path/to", str(folder)))
    return folder


def make_test_sets(folder, wnids, picture):
    """Other test sets of ImageNet, with an image each of two classes, and ReaL labels."""
    for name, classes in {"imagenetv2-matched-frequency-format-val": "12", "imagenet-r": wnids[1:3]}.items():
        for number in classes:
            (folder / name / number).mkdir(parents=True)
            shutil.copy(picture, folder / name / number / "0.jpeg")
    (folder / "real.json").write_text("[[0], [], [1, 2]" + ", [3]" * 15 + "]")


def make_pictures(folder, pictures):
    """Two class folders of five pictures each."""
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for picture in pictures[5 * number : 5 * number + 5]:
            shutil.copy(picture, folder / name)


def make_cifar(folder, pictures):
    """CIFAR-10's class folders with few images, and its archive with one image in each batch."""
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for number, name in enumerate(classes):
        for split in ("train", "test"):
            (folder / "cifar10" / split / name).mkdir(parents=True)
            for picture in pictures[3 * number : 3 * number + 3]:
                shutil.copy(picture, folder / "cifar10" / split / name)
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir()
    (batches / "batches.meta.txt").write_text("\n".join(classes) + "\n")
    for name in ("test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (batches / f"{name}.bin").write_bytes(bytes([3]) + bytes(range(256)) * 12)  # a label, 3 x 32 x 32 pixels
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(batches, batches.name)


def make_archives(folder, wnids, pictures):
    """ImageNet's own archives, of two classes with two images each, and the list that validation needs."""
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for wnid, two in zip(wnids, (pictures[:2], pictures[2:])):
            with tarfile.open(folder / f"{wnid}.tar", "w") as inner:
                for number, picture in enumerate(two):
                    inner.add(picture, f"{wnid}_{number}.JPEG")
            train.add(folder / f"{wnid}.tar", f"{wnid}.tar")
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as val:
        for name, picture in zip(names, pictures):
            val.add(picture, name)
    (folder / "val_list.txt").write_text("".join(f"{name} {number % 2}\n" for number, name in enumerate(names)))


# What other tests run: here, only the options are parsed. Commands of README.md are all run.
RUN_ELSEWHERE = {
    "tools/benchmark.py data": "test_benchmark.py",
    "tools/benchmark.py model": "test_benchmark_model.py",
    "tools/benchmark.py train": "test_benchmark_speed.py",
    "tools/benchmark.py infer": "test_benchmark_growth.py",
    "tools/benchmark.py growth": "test_benchmark_growth.py",
    "tools/benchmark.py serve": "test_benchmark_serve.py",
    "tools/demo.py --config": "test_demo.py",
    "-m paddle.distributed.launch --nproc_per_node 2": "test_processes.py",
}


def parse_options(line):
    """The options of a command, parsed as it does."""
    script, words = re.search(r"tools/(\w+)\.py (.*)", line).groups()
    kind, *words = shlex.split(words) if script == "benchmark" else ["", *shlex.split(words)]
    return cli.parse_words(words, benchmark_parser(kind) if kind else importlib.import_module(script).parser())


def as_small_job(line, place):
    """A job of scripts/aistudio.sh that finds the archives of `place` mounted, and keeps everything there."""
    folders = f"JOB_MOUNTS={place} JOB_DATA={place}/fast JOB_BEST={place}/best"
    return f"{folders} {line} --output {place}/output {TINY} --batch-size 4 TRAIN.ACCUM_STEPS 1"


def visit_page(line):
    """Run a command that serves a page on any free port, load the page, and stop the command."""
    pytest.importorskip("gradio", reason="the page is made with it")
    with Page(*shlex.split(line)[2:], "--port", 0) as page:
        with urllib.request.urlopen(page.url) as answer:
            assert "gradio" in answer.read().decode()
        page.stop()


def ask_server(line):
    """Run a command that answers requests on any free port, send a picture, and stop the command."""
    pytest.importorskip("fastapi", reason="the server is made with it")
    with Page(*shlex.split(line)[2:], "--port", 0, script="tools/serve.py") as page:
        picture = (ROOT / "lit_data/val/3/0045.png").read_bytes()
        with urllib.request.urlopen(f"{page.url}/predict", picture) as answer:
            assert json.load(answer)["results"][0]["name"] == "three"
        page.stop()


# Commands that take less time than the start of Python and Paddle.
QUICK = re.compile("tools/(check_data|convert|export|predict|train|unpack|val|visualize).py")
_started = set()  # scripts that have run in a process of their own


def as_python(words):
    """[script, option, ...] of a command that runs Python; [] for any other."""
    if words[0] == "python":
        return words[1:]
    if words[0] == "bash" and (script := re.fullmatch(r"scripts/(train|val)\.sh", words[1])):
        config = ["--config"] if words[2:] and words[2].endswith(".yaml") else []
        return [f"tools/{script[1]}.py", *config, *words[2:]]
    return []


@functools.cache
def run(line):
    """Run a command, only once if several lines of the README are equivalent. The first command of each script runs as
    written, the others run in this process."""
    words = as_python(shlex.split(line))
    if words and QUICK.fullmatch(words[0]) and words[0] in _started:
        return in_process.run(ROOT / words[0], words[1:], ROOT)
    _started.update(words[:1])
    return subprocess.run(line, shell=True, capture_output=True, text=True, timeout=600, cwd=ROOT, env=ENVIRONMENT)


@pytest.mark.parametrize("line", commands())
def test_command_runs(line, place):
    if any(part in line for part in RUN_ELSEWHERE):
        assert line not in (ROOT / "README.md").read_text("utf-8") and not parse_options(line).debug
        return
    if "convert.py" in line:
        pytest.importorskip("torch", reason="the command reads a PyTorch file")
        tensors = peers.official_tensors("T2T_paddle/t2t_vit_7")
        peers.save_torch(place / "71.7_T2T_ViT_7.pth.tar", {"state_dict_ema": tensors})
    if "export" in line or "--engine" in line:
        for library in ("onnx", "paddle2onnx", "onnxruntime", "openvino"):
            pytest.importorskip(library, reason="an optional library of the engines")
    if "visualize.py curves" in line or "--confusion" in line:
        pytest.importorskip("matplotlib", reason="the command draws")
    line = line.replace("$SAMPLE", "/path/to/imagenet").replace("$PWD/", "")
    line = re.sub(r"output/(memorise|finetune|balanced)/", rf"{place}/output/\1/", line)
    line = line.replace("/path/to/", f"{place}/")
    files = "(?:attention|curves|predictions|confusion|growth|picture).png|photo.jpg|(?:few|unbalanced|small).txt|"
    files += "(?:predictions|speed|growth).json|t2t_vit_7_official.pdparams|model.safetensors|model_card.md|report.md"
    line = re.sub(rf"\b({files})", rf"{place}/\1", line)
    line = re.sub(r"^(NNODES=\S+ MASTER=\S+ NODE_RANK=\S+ )?GPUS=\S+ ", "", line)  # no cards and no other machines here
    line += f" --sheet {place}/augment.png" if "visualize.py" in line else ""
    line += " --images 20" if "export.py" in line else ""
    if "aistudio.sh" in line:
        line = as_small_job(line, place)
    elif "convert.py" not in line and re.search("imagenet|t2t_vit|Best_PiT", line):
        tiny = TINY if "train" in line.split()[1] else "DATA.IMAGE_SIZE 32 DATA.NUM_WORKERS 0"
        tiny += " MODEL.PIT.DEPTH '[1, 1, 1]'" if "pit" in line else " MODEL.T2T.DEPTH 1"
        tiny += " MODEL.NAME t2t_vit_14" if "finetune.yaml" in line else ""  # one block fits no variant
        line += f" --output {place}/output {tiny}" if "memorise/" not in line else ""
    elif re.search(r"\btrain\.(sh|py)", line):
        # The replacements of other data have few images, lit_data is complete.
        tiny = TINY if re.search("data-path|pets", line) else f"{TINY} CPU.MICRO_BATCH 0".replace("size 8", "size 128")
        line += f" --output {place}/output {tiny}"
        fixed = "cifar10_few" in line or "pit" in line  # fixed by the published weights, or by the family
        line += " DATA.IMAGE_SIZE 16" + ("" if fixed else " MODEL.T2T.DEPTH 1")
    if "demo.py" in line:
        visit_page(line)
        return
    if "serve.py" in line:
        ask_server(line)
        return
    if "TRAIN.WARMUP_EPOCHS 0" in line:
        line = re.sub(r" --batch-size \d+(?=.* --batch-size)", "", line)  # TINY's wins
        line += " --resume none"  # not on from another line's run of other settings
    done = run(line)
    assert done.returncode == 0, f"{shlex.quote(line)}\n{done.stdout}\n{done.stderr}"
    if "predict.py" in line and len(line.split()) <= 3:
        assert "class_id is: " in done.stdout.splitlines()[-1]


def test_python_of_the_documents_runs(place, tmp_path):
    pytest.importorskip("sklearn", reason="the linear probe of docs/python.md")
    checkpoint.save(tmp_path / "t2t_vit_7.pdparams", create_model("t2t_vit_7", image_size=32).state_dict())
    run(f"python tools/predict.py lit_data/val --embeddings {place}/features.npz")
    code = "\n".join(block for path in ENGLISH for block in blocks(path, "python"))
    code = code.replace("/path/to/t2t_vit_7", f"{tmp_path}/t2t_vit_7")
    code = code.replace("/path/to", str(place))
    code += """
import numpy as np
from PIL import Image

digit = Image.open("lit_data/val/3/0045.png")
drawn = [np.asarray(Blur()(digit, np.random.default_rng(seed))).tolist() for seed in (1, 1, 2)]
assert drawn[0] == drawn[1] != drawn[2]
assert "t2t_vit_5" in t2t.VARIANTS and sum(parameter.size for parameter in create_model("t2t_vit_5").parameters()) < 2e6
"""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
