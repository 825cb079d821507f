"""scripts/aistudio.ipynb: it is clean, in two languages, and runs from top to bottom."""

import base64
import io
import json
import re

import pytest
from conftest import ROOT
from PIL import Image
from test_aistudio import SMALL, STEP, folders  # noqa: F401 (a fixture)

NOTEBOOK = ROOT / "scripts/aistudio.ipynb"


def notebook():
    nbformat = pytest.importorskip("nbformat", reason="reads the notebook")
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(pages):
    """Run a notebook in the folder where a user opens it. Returns the texts and pictures that it shows."""
    nbclient = pytest.importorskip("nbclient", reason="runs the notebook")
    pytest.importorskip("ipykernel", reason="runs the notebook")
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(pages, timeout=600, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in pages.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = "".join(output.text for output in outputs if output.output_type == "stream")
    shown = [output.data["image/png"] for output in outputs if output.output_type == "display_data"]
    return texts, [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in shown]


def replaced(cells, before, after):
    assert sum(before in cell.source for cell in cells) == 1
    for cell in cells:
        cell.source = cell.source.replace(before, after)


def test_notebook_is_clean_and_in_two_languages():
    nbformat = pytest.importorskip("nbformat", reason="reads the notebook")
    pages = notebook()
    nbformat.validate(pages)
    assert pages.metadata.kernelspec.name == "python3"
    for cell in pages.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
        else:
            assert re.search("[A-Za-z]{3}", cell.source) and re.search("[\u4e00-\u9fff]{2}", cell.source), cell.source


def test_notebook_runs_from_top_to_bottom(folders, monkeypatch):  # noqa: F811
    """With its ImageNet cells, on tiny archives."""
    monkeypatch.setenv("JOB_BEST", f"{folders}/the best")
    monkeypatch.setenv("JOB_DATA", f"{folders}/my data")
    shipped = {path: path.stat().st_mtime_ns for path in (ROOT / "output/pretrained/lit_data").iterdir()}
    pages = notebook()
    assert sum(cell.source.startswith("if IMAGENET:") for cell in pages.cells) == 3
    replaced(pages.cells, 'OUTPUT = "output/notebook"', f'OUTPUT = "{folders}/notebook"')
    replaced(pages.cells, "IMAGENET = False", "IMAGENET = True")
    options = " ".join([*STEP, *SMALL, "TRAIN.EPOCHS", "1"])
    replaced(pages.cells, 'OPTIONS = ""', f'OPTIONS = "{options}"')
    text, pictures = execute(pages)
    assert re.search("stopped by SIGTERM after .*\n", text) and f"resumed {folders}/notebook/lit_data/latest" in text
    best = re.search(r"done: best lit_data val acc (\d\.\d{4}) at epoch", text).group(1)
    mine, published = re.findall(r"lit_data final val acc is:(\d\.\d{4})", text)
    assert mine == best and float(mine) > 0.5 and float(published) > 0.97
    assert "class_id is: 3\n" in text
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "output/pretrained/lit_data").iterdir()} == shipped

    text = text[text.index("ILSVRC2012_w.tar: 12 images written") :]
    assert re.search(r"ImageNet final val acc is:\d\.\d{4}", text) and re.search(r"class_id is: \d+\n", text)
    assert f"with {folders}/the best/t2t_vit_7/best.pdparams on" in text
    assert json.loads((folders / "the best/t2t_vit_7/metrics.jsonl").read_text())["epoch"] == 1
    assert len(pictures) == 6 and min(min(picture.size) for picture in pictures) >= 8
