"""Consistency of the repository: names, imports, config keys, scripts, and claims of the README."""

import ast
import filecmp
import importlib.machinery
import inspect
import re
import signal
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, ROOT, SEARCHED, few_digits, signalled

from t2t_vit.config import all_keys, load_config
from t2t_vit.models.pit import PoolingTransformer
from t2t_vit.models.t2t import T2TViT
from t2t_vit.models.zoo import list_models

FAMILIES = {"MODEL.T2T": T2TViT, "MODEL.PIT": PoolingTransformer}
TOOLS = ROOT / "tools"
SOURCES = sorted(TOOLS.rglob("*.py"))


def test_no_module_shadows_another():
    # `python tools/train.py` puts tools/ first on sys.path.
    elsewhere = [path for path in SEARCHED if path and not path.startswith((str(TOOLS), str(ROOT / "tests")))]
    for path in TOOLS.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert importlib.machinery.PathFinder.find_spec(path.stem, elsewhere) is None, path
            assert path.stem not in sys.builtin_module_names


# Each subpackage may import itself and those before it.
ROOMS = ["common", "spellings", "config_values", "config", "models", "data", "parallel", "weights", "runs", "training",
         "deploy", "explain", "pictures", "serve", "bench", "page"]  # fmt: skip


def imported_rooms(path):
    """Subpackages that a source file imports, and other modules."""
    rooms, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module if node.module != "t2t_vit" else f"t2t_vit.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            (rooms if first == "t2t_vit" else others).add((rest if first == "t2t_vit" else name).split(".")[0])
    return rooms, others


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    package = TOOLS / "t2t_vit"
    command_line = {"cli", "options"}
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found == {*ROOMS, "__init__", *command_line}
    for path in sorted((package / room).glob("*.py")) or [package / f"{room}.py"]:
        rooms, others = imported_rooms(path)
        allowed = {
            "__version__",  # of the package itself
            *ROOMS[: ROOMS.index(room) + 1],
            *(command_line if room in ("pictures", "serve", "bench", "page") else ()),
        }
        assert rooms <= allowed, path
        if room == "models":
            # NumPy draws the random numbers of a thread (dropout.py).
            plain = {"paddle", "math", "difflib", "numpy", "threading", "contextlib", "dataclasses", "operator"}
            plain |= {"typing", "collections", "__future__"}
            assert others <= plain, path


def test_every_config_key_is_read():
    chains = set()  # "trainer.cfg.TRAIN.LOG_EVERY", "train.BASE_LR", ...
    for path in SOURCES:
        if path.name not in ("config.py", "config_values.py"):
            chains |= {ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    for key in all_keys():
        section, _, leaf = key.rpartition(".")
        if section in FAMILIES:
            assert leaf.lower() in inspect.signature(FAMILIES[section]).parameters  # passed on by name
            continue
        # As cfg.TRAIN.BASE_LR, or through a variable named after its section, train.BASE_LR.
        whole, alias = f"cfg.{key}", f"{section.lower()}.{leaf}" if section else None
        assert any(chain in (alias, whole) or chain.endswith(f".{whole}") for chain in chains), key


def test_every_model_argument_comes_from_a_key():
    build = (TOOLS / "t2t_vit/weights/build.py").read_text()
    for section, model in FAMILIES.items():
        own = {key.split(".")[-1].lower() for key in all_keys() if key.startswith(f"{section}.")}
        for argument in inspect.signature(model).parameters:
            # Whether a PiT is distilled is in its name.
            assert argument in own | {"distilled"} or f"{argument}=" in build, argument


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_load_and_say_what_they_are(path):
    cfg = load_config(path)
    assert cfg.MODEL.NAME in list_models() or path.name == "finetune.yaml"  # whose model the weights choose
    header = path.read_text().split("MODEL:")[0]
    for word in ("# Launch:", "# Hardware:", "# Expected:"):
        assert word in header


@pytest.mark.parametrize("name", ["lit_data", "lit_data_pit", "cifar10", "cifar10_augment"])
def test_published_runs_match_their_configs(name):
    shipped = load_config(ROOT / f"output/pretrained/{name}/config.yaml")
    assert shipped == load_config(ROOT / f"configs/{name}.yaml")
    for path in [*(ROOT / "output/pretrained" / name).iterdir(), ROOT / "log/pretrained/lit_data.log"]:
        if path.is_file() and path.suffix != ".pdparams":  # export/ is no part of it
            assert not re.search(r"(^|[\s:'\"])/\w", path.read_text()), f"{path} names a path of some machine"


def test_there_is_a_config_for_every_variant():
    for name in list_models():
        assert name == load_config(ROOT / f"configs/{name}.yaml").MODEL.NAME


def test_lit_data_is_remade_byte_for_byte(tmp_path):
    pytest.importorskip("sklearn")
    subprocess.run([sys.executable, str(ROOT / "lit_data/make_lit_data.py"), "--root", str(tmp_path)], check=True)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) == 1797 + 3
    _, mismatch, errors = filecmp.cmpfiles(tmp_path, ROOT / "lit_data", made, shallow=False)
    assert not mismatch and not errors
    shipped = [path for split in ("train", "val") for path in (ROOT / "lit_data" / split).rglob("*.png")]
    assert len(shipped) == 1797


# --- Scripts ---


def script(name, *words):
    command = ["bash", str(ROOT / "scripts" / name), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/", env=ENVIRONMENT)


@pytest.mark.parametrize("name", ["val.sh", "eval.sh", "predict.sh"])
def test_scripts_work_without_arguments_from_anywhere(name):
    done = script(name)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == "class_id is: 3" if name == "predict.sh" else last.startswith("lit_data final val acc is:0.9")


def test_train_script_takes_a_config_and_options(tmp_path):
    few = map(str, few_digits(tmp_path))
    done = script("train.sh", str(ROOT / "configs/lit_data.yaml"), "--output", str(tmp_path), "MODEL.T2T.DEPTH", "1",
                  *few, "TRAIN.BATCH_SIZE", "50", "TRAIN.EPOCHS", "1",
                  "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.COOLDOWN_EPOCHS", "0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lit_data/best.pdparams").is_file()
    assert script("train.sh", "absent.yaml").returncode == 1


def test_signal_to_the_train_script_reaches_the_training(tmp_path):
    words = ["bash", "scripts/train.sh", "configs/lit_data.yaml", "--output", str(tmp_path), "MODEL.T2T.DEPTH", "1"]
    words += [str(word) for word in few_digits(tmp_path, 20)] + ["TRAIN.BATCH_SIZE", "10", "TRAIN.WARMUP_LR", "1e-6"]
    lines = signalled(words, "Epoch [1/", signal.SIGTERM)
    # Explains the accuracy of the first epoch.
    assert "epoch 1 hardly changes the weights: TRAIN.WARMUP_LR is 1e-06" in (tmp_path / "lit_data.log").read_text()
    assert lines[-2].startswith("stopped by SIGTERM after ")
    assert lines[-1] == f"continue with: {' '.join(words)} --resume auto"


def test_scripts_are_valid_bash():
    for path in (ROOT / "scripts").glob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
