"""The program beside an exported .onnx file: it needs three packages and answers like tools/predict.py."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT, tool
from PIL import Image

for library in ("onnx", "paddle2onnx", "onnxruntime"):
    pytest.importorskip(library, reason="an optional library of the engines")


@pytest.fixture
def three_packages(tmp_path):
    """Folder with links to onnxruntime, NumPy and Pillow alone."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for module in ("numpy", "PIL", "onnxruntime"):
        package = Path(importlib.util.find_spec(module).origin).parent
        libraries = package.with_name({"PIL": "pillow.libs"}.get(module, f"{module}.libs"))
        for path in filter(Path.exists, (package, libraries)):
            (folder / path.name).symlink_to(path)
    return folder


def odd_pictures(folder):
    """Files of pictures that are grey, transparent, rotated by EXIF, long or large."""
    folder.mkdir()
    with Image.open(ROOT / "docs/figures/attention.jpg") as photo:
        photo = photo.convert("RGB").crop((0, 0, 400, 300))
    photo.convert("L").save(folder / "grey.png")
    transparent = photo.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(photo.size))
    transparent.save(folder / "transparent.png")
    photo.quantize(8).save(folder / "palette.gif", transparency=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "rotated.jpg", exif=exif, quality=95)
    photo.crop((0, 0, 400, 33)).save(folder / "long.bmp")
    return sorted(map(str, folder.iterdir()))


@pytest.mark.parametrize(
    "settings, batch_size",
    [
        ([], 1),
        (["VAL.CROP_MODE", "squash", "DATA.EXIF", "ignore"], 3),
        (["VAL.CROP_PCT", 0.7, "VAL.INTERPOLATION", "bilinear"], 0),
    ],
)
def test_the_program_beside_an_onnx_file_answers_like_predict(settings, batch_size, three_packages, tmp_path):
    target, pictures = tmp_path / "made/x.onnx", odd_pictures(tmp_path / "pictures")
    batches = ["--batch-size", batch_size] if batch_size else ["--dynamic-batch"]
    config = ROOT / "output/pretrained/cifar10_augment/config.yaml"
    tool("export", "--format", "onnx", "--config", config, "--file", target, "--images", 8, *batches, *settings)
    program = target.with_name("predict_onnx.py")
    assert len(program.read_text().splitlines()) < 70
    environment = {"PYTHONPATH": str(three_packages), "PATH": ENVIRONMENT["PATH"]}
    command = [sys.executable, "-S", "-s", str(program), str(target), *pictures]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == tool("predict", "--pretrained", target, *pictures).stdout


def test_a_broken_picture_does_not_stop_the_program(three_packages, tmp_path):
    tool("export", "--format", "onnx", "--file", tmp_path / "x.onnx", "--images", 2)
    (tmp_path / "broken.png").write_text("no picture")
    environment = {"PYTHONPATH": str(three_packages), "PATH": ENVIRONMENT["PATH"]}
    digit = str(ROOT / "lit_data/val/3/0045.png")
    command = [sys.executable, "-S", "-s", "predict_onnx.py", "x.onnx", "broken.png", "absent.png", digit]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == f"{digit} (class: 3) three, prob: 0.9316\n"
    errors = done.stderr.splitlines()
    assert len(errors) == 2 and errors[0].startswith("error: broken.png cannot be read: ")


def test_another_program_of_that_name_is_kept(tmp_path):
    (tmp_path / "predict_onnx.py").write_text("print('mine')\n")
    done = tool("export", "--format", "onnx", "--file", tmp_path / "x.onnx", "--images", 2)
    assert done.stderr == f"warning: {tmp_path}/predict_onnx.py is another program and is kept\n"
    assert (tmp_path / "predict_onnx.py").read_text() == "print('mine')\n"
