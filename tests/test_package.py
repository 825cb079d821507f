"""The package as pip installs it: it does not depend on the repository or the current folder."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    """Folder in which pip has installed a copy of the repository's package."""
    pytest.importorskip("setuptools", minversion="64", reason="builds the package")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site-packages")
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    for folder in ("tools/t2t_vit", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return target


def test_every_room_is_installed(site_packages):
    rooms = [init.parent.relative_to(ROOT / "tools") for init in (ROOT / "tools/t2t_vit").rglob("__init__.py")]
    assert len(rooms) > 10 and all((site_packages / room / "__init__.py").is_file() for room in rooms)


def test_installed_package_works_from_any_folder(site_packages, tmp_path):
    for name in ("models", "data", "config"):
        (tmp_path / f"{name}.py").write_text("OWN = True\n")
    (tmp_path / "own.yaml").write_text("MODEL: {NAME: pit_ti}\n")
    command = [sys.executable, "-I", ROOT / "tests/programs/installed_package.py", site_packages]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_paths_of_an_installed_package_start_at_the_current_folder(site_packages, tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from t2t_vit.config import resolve; print(resolve('runs'))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, site_packages], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == f"{tmp_path}/runs\n", done.stderr
