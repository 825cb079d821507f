"""Every command of both READMEs runs, the ImageNet-sized ones on a tiny stand-in."""

import re
import shlex
import shutil
import subprocess
import tarfile
import urllib.request

import peers
import pytest
from conftest import ENVIRONMENT, ROOT, Page

from engine import checkpoint
from models import create_model

# Makes a training that would take days one step long.
TINY = "--batch-size 8 DATA.IMAGE_SIZE 32 DATA.NUM_WORKERS 0 VAL.EVERY 1"
TINY += " TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 TRAIN.COOLDOWN_EPOCHS 0"


def bash_blocks(name):
    return re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands():
    text = "\n".join(bash_blocks("README.md")).replace("\\\n", "")
    inline = re.findall(r"`((?:bash scripts|python tools)/[^`]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines() + inline]
    # Not the tests themselves, nor an environment variable for scripts/env.sh.
    return [line for line in dict.fromkeys(lines) if line and "test.sh" not in line and not line.startswith("export")]


def test_both_languages_show_the_same_commands():
    assert bash_blocks("README.md") == bash_blocks("README_cn.md")
    assert len(commands()) >= 14


def test_no_figure_is_left_open():
    for name in ("README.md", "README_cn.md", *(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml"))):
        assert not re.findall(r"@[A-Z_0-9]+@", (ROOT / name).read_text(encoding="utf-8")), name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that stands in for the clone's parent: tiny ImageNet, weights, pictures."""
    folder = tmp_path_factory.mktemp("readme")
    digits = sorted((ROOT / "lit_data/val").glob("*/*.png"))
    wnids = [line.split("\t")[1] for line in (ROOT / "configs/imagenet1k_classes.tsv").read_text().splitlines()[1:]]
    for i, digit in enumerate(digits[::20]):
        for split in ("train", "val"):
            target = folder / "imagenet" / split / wnids[i]
            target.mkdir(parents=True)
            shutil.copy(digit, target / "x.JPEG")
    make_cifar(folder, digits)
    make_pictures(folder / "pictures", digits)
    shutil.copy(digits[0], folder / "picture.png")
    shutil.copy(digits[0], folder / "photo.jpg")
    make_archives(folder, wnids, digits[:4])
    for name in ("t2t_vit_7", "t2t_vit_14"):
        checkpoint.save(folder / f"{name}.pdparams", create_model(name, image_size=32).state_dict())
    return folder


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


def with_little_to_measure(line, place):
    """A command of the benchmark that takes seconds, and writes into `place`."""
    kind = line.split()[2]
    if kind == "data":
        return f"{line} --images 8 --rounds 1 --workers 1"
    line += " --precisions fp32" if "--engines" in line else ""
    if kind == "growth":
        pytest.importorskip("matplotlib", reason="the command draws")
        line = line.replace("output/benchmark/", f"{place}/") + " --image-sizes 32,48"
    return line if kind == "model" else f"{line} --rounds 1 --threads 1 --batch-sizes 2 DATA.IMAGE_SIZE 32"


def visit_page(line):
    """Run a command that serves a page, at any free port: look at the page, and stop it."""
    pytest.importorskip("gradio", reason="the page is made with it")
    with Page(*shlex.split(line)[2:], "--port", 0) as page:
        with urllib.request.urlopen(page.url) as answer:
            assert "gradio" in answer.read().decode()
        page.stop()


@pytest.mark.parametrize("line", commands())
def test_command_runs(line, place):
    if "convert.py" in line:
        pytest.importorskip("torch", reason="the command reads a PyTorch file")
        tensors = peers.official_tensors("T2T_paddle/t2t_vit_7")
        peers.save_torch(place / "71.7_T2T_ViT_7.pth.tar", {"state_dict_ema": tensors})
    if "export" in line or "--engine" in line:
        for library in ("onnx", "paddle2onnx", "onnxruntime", "openvino"):
            pytest.importorskip(library, reason="an optional library of the engines")
    line = line.replace("$SAMPLE", "/path/to/imagenet").replace("$PWD/", "")
    line = re.sub(r"output/(memorise|finetune)/", rf"{place}/output/\1/", line)
    line = re.sub(r"/path/to/(\S+)", rf"{place}/\1", line)
    files = "picture.png|photo.jpg|predictions.json|speed.json|few.txt|t2t_vit_7_official.pdparams"
    line = re.sub(rf"\b({files})", rf"{place}/\1", line)
    line = re.sub(r"^(NNODES=\S+ MASTER=\S+ NODE_RANK=\S+ )?GPUS=\S+ ", "", line)  # no cards and no other machines here
    line += f" --sheet {place}/augment.png" if "visualize.py" in line else ""
    line = with_little_to_measure(line, place) if "benchmark.py" in line else line
    if not re.search(r"convert.py|benchmark.py [^d]", line) and ("imagenet" in line or "t2t_vit" in line):
        tiny = TINY if "train" in line.split()[1] else "DATA.IMAGE_SIZE 32 DATA.NUM_WORKERS 0"
        line += f" --output {place}/output {tiny}" if "memorise/" not in line else ""
    elif re.search(r"\btrain\.(sh|py)", line):
        line += f" --output {place}/output {TINY}"
        fixed = "cifar10_few" in line or "pit" in line  # by the shipped weights, by the family
        line += " DATA.IMAGE_SIZE 16" + ("" if fixed else " MODEL.T2T.DEPTH 1")
    if "demo.py" in line:
        visit_page(line)
        return
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=300, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, f"{shlex.quote(line)}\n{done.stdout}\n{done.stderr}"
    if "predict.py" in line and len(line.split()) <= 3:
        assert "class_id is: " in done.stdout.splitlines()[-1]
