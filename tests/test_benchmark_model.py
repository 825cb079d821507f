"""`benchmark.py model`: its counts are the official figures, at any size, and those of the documents."""

import json
import re

import paddle
import pytest
from conftest import ROOT, error_line, tool
from documents import prose, rows

from t2t_vit.bench.counts import count, macs, products
from t2t_vit.bench.operations import count_operations
from t2t_vit.config import load_config
from t2t_vit.models.zoo import create_model, list_models

# Parameters, those trained, GMACs with and without the attention products of the backbone, counted on the
# official PyTorch code; of T2T-ViT-SE, -Ghost and -Dense the GMACs follow from the shapes of the official weights.
OFFICIAL = {
    "t2t_vit_7": (4_310_222, 4_255_694, "1.15", "1.01"),
    "t2t_vit_10": (5_889_230, 5_834_702, "1.52", "1.32"),
    "t2t_vit_12": (6_941_902, 6_887_374, "1.76", "1.52"),
    "t2t_vit_14": (21_545_550, 21_465_806, "4.78", "4.37"),
    "t2t_vit_14_384": (21_691_470, 21_465_806, "16.37", "12.79"),
    "t2t_vit_14_resnext": (21_545_550, 21_465_806, "4.78", "4.37"),
    "t2t_vit_14_se": (21_803_598, 21_723_854, "4.78", "4.37"),
    "t2t_vit_14_wide": (25_156_302, 25_000_910, "5.23", "4.99"),
    "t2t_vit_16_ghost": (16_253_262, 16_173_518, "3.80", "3.32"),
    "t2t_vit_19": (39_177_422, 39_085_070, "8.48", "7.82"),
    "t2t_vit_24": (64_105_934, 64_000_974, "13.66", "12.71"),
    "t2t_vit_dense": (23_647_062, 23_617_750, "5.28", "4.75"),
    "t2t_vit_t_14": (21_541_070, 21_465_422, "6.09", "5.67"),
    "t2t_vit_t_19": (39_172_942, 39_084_686, "9.78", "9.12"),
    "t2t_vit_t_24": (64_101_454, 64_000_590, "14.97", "14.01"),
    "pit_ti": (4_847_272, 4_847_272, "0.70", "0.50"),
    "pit_xs": (10_618_888, 10_618_888, "1.39", "1.09"),
    "pit_s": (23_461_912, 23_461_912, "2.87", "2.42"),
    "pit_b": (73_764_840, 73_764_840, "12.40", "10.54"),
    "pit_ti_distilled": (5_104_336, 5_104_336, "0.70", "0.50"),
    "pit_xs_distilled": (11_003_984, 11_003_984, "1.41", "1.10"),
    "pit_s_distilled": (24_039_056, 24_039_056, "2.90", "2.44"),
    "pit_b_distilled": (74_790_096, 74_790_096, "12.48", "10.61"),
}
# Outputs of matrix products in millions, from timm's results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv.
TIMM_ACTIVATIONS = {
    "pit_ti": "6.19", "pit_xs": "7.71", "pit_s": "11.56",
    "pit_ti_distilled": "6.23", "pit_xs_distilled": "7.76", "pit_s_distilled": "11.64",
}  # fmt: skip


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """(printed lines, {model: figures}) of all models, printed in Markdown."""
    file = tmp_path_factory.mktemp("model") / "model.json"
    done = tool("benchmark", "model", "all", "--markdown", "--json", file)
    assert done.stderr == ""
    return done.stdout.splitlines(), {row["model"]: row for row in json.loads(file.read_text())["model"]}


def test_counts_equal_the_official_figures(counted):
    assert list(counted[1]) == list_models() and set(OFFICIAL) == set(counted[1])
    for name, row in counted[1].items():
        figures = (row["parameters"], row["trainable_parameters"], f"{row['gmacs']:.2f}", f"{row['gmacs_without']:.2f}")
        assert figures == OFFICIAL[name], name
        assert row["weights_mb"] == pytest.approx(4 * OFFICIAL[name][0] / 2**20)
        assert row["image_size"] == (384 if name.endswith("384") else 224)
    for name, millions in TIMM_ACTIVATIONS.items():
        assert f"{counted[1][name]['activations'] / 1e6:.2f}" == millions


def test_the_table_shows_the_counts(counted):
    lines, rows = counted
    table = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    assert table[0] == ["model", "pixels", "parameters", "trained", "weights, MB", "GMACs", "without attention",
                        "activations, M"]  # fmt: skip
    for cells in table[2:]:
        row = rows[cells[0]]
        assert cells[1:] == [
            str(row["image_size"]), f"{row['parameters']:,}", f"{row['trainable_parameters']:,}",
            f"{row['weights_mb']:.1f}", f"{row['gmacs']:.2f}", f"{row['gmacs_without']:.2f}",
            f"{row['activations'] / 1e6:.2f}",
        ]  # fmt: skip
    assert len(table) == 2 + len(rows)


def test_the_documents_show_these_figures():
    zoo = [row for row in rows(prose(ROOT / "docs/zoo.md")) if row[0].startswith("`configs/")]
    zoo = {re.fullmatch(r"`configs/(\w+)\.yaml`", row[0])[1]: " | ".join(row) for row in zoo}
    assert set(zoo) == set(OFFICIAL)
    short = {}
    for name, *cells in rows(prose(ROOT / "README.md")):
        for number, each in enumerate(re.findall(r"`(\w+)`", name) if len(cells) == 3 else []):
            short[each] = [cell.split(", ")[number] for cell in cells[:2]]
    assert set(OFFICIAL) == set(short)
    for name, (parameters, trained, gmacs, without) in OFFICIAL.items():
        assert f"{parameters:,}" in zoo[name] and f"{gmacs} ({without})" in zoo[name]
        assert trained == parameters or f"({trained:,})" in zoo[name]
        assert short[name] == [f"{parameters / 1e6:.1f}", gmacs]


# --- Other sizes ---


@pytest.mark.parametrize(
    "name, overrides, expected",
    [
        # Counted once in the traced program of the plain forward pass, by the shapes of its matmul and conv2d.
        ("t2t_vit_7", dict(image_size=(96, 128), num_classes=7, depth=2, token_dim=32,
                           splits=((5, 2, 2), (3, 2, 1), (3, 1, 1), (3, 2, 1))), 342_854_400),
        ("t2t_vit_t_14", dict(image_size=64, depth=2), 81_650_176),
        ("t2t_vit_7", dict(tokens_type="convolution", image_size=64), 70_809_088),
        # By hand: 16 patches of 16 pixels, 7 blocks of 17 tokens, the head.
        ("t2t_vit_7", dict(tokens_type="patch", image_size=64),
         16 * 3 * 16**2 * 256 + 7 * (17 * 8 * 256**2 + 2 * 17**2 * 256) + 256 * 1000),
        ("pit_s_distilled", dict(image_size=(96, 128)), 650_270_016),
    ],
)  # fmt: skip
def test_any_sizes_are_counted(name, overrides, expected):
    assert macs(products(create_model(name, **overrides))) == expected


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_14_se", "t2t_vit_16_ghost", "t2t_vit_dense",
                                  "pit_ti", "pit_ti_distilled"])  # fmt: skip
@pytest.mark.parametrize("tokens_type", ["", "convolution", "patch"])
def test_no_layer_is_forgotten(name, tokens_type):
    overrides = {"tokens_type": tokens_type} if tokens_type and name.startswith("t2t") else {}
    with paddle.LazyGuard():
        model = create_model(name, **overrides)
    weights = {name for name, tensor in model.state_dict().items() if name.endswith(".weight") and tensor.ndim > 1}
    counted = [product.name for product in products(model) if product.name.endswith(".weight")]
    assert sorted(counted) == sorted(weights)


def test_the_performer_is_linear_and_the_transformer_quadratic():
    growth = {}
    for name in ("t2t_vit_14", "t2t_vit_t_14"):
        small, large = (
            count(load_config(ROOT / f"configs/{name}.yaml", [("DATA.IMAGE_SIZE", size)])) for size in (224, 448)
        )
        assert (small["tokens"], large["tokens"]) == (56**2, 112**2)
        growth[name] = large["token_module_gmacs"] / small["token_module_gmacs"]
    assert growth["t2t_vit_14"] == pytest.approx(4, rel=0.01)
    assert 13 < growth["t2t_vit_t_14"] < 16


# --- Command ---


def test_a_config_and_its_overrides_count_too():
    done = tool("benchmark", "model", "MODEL.T2T.DEPTH", "2", "--image-sizes", "16,24")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("lit_data")]
    assert [row[1] for row in rows] == ["16", "24"]
    model = create_model("t2t_vit_7", image_size=24, num_classes=10, depth=2, embed_dim=128, num_heads=4, token_dim=32,
                         splits=((3, 1, 1), (3, 2, 1), (3, 2, 1)))  # fmt: skip
    assert rows[1][2] == f"{sum(parameter.size for parameter in model.parameters()):,}"


@pytest.mark.parametrize(
    "words, message",
    [
        (["model", "t2t_vit_8"], "error: unknown model 't2t_vit_8'; did you mean t2t_vit_7, "),
        (["model", "all", "--config", "configs/pit_b.yaml"], "error: give models (all) or --config, not both"),
        (["model", "MODEL.NUM_CLASSES", "0"], "error: MODEL.NUM_CLASSES is 0 "),
    ],
)
def test_mistakes_are_one_line(words, message):
    assert error_line("benchmark", *words).startswith(message)


def test_operations_of_a_training_step_are_counted(tmp_path):
    small = ["MODEL.T2T.DEPTH", "1", "MODEL.DROP_PATH_RATE", "0.0"]
    done = tool("benchmark", "model", "--operations", "--json", tmp_path / "model.json", *small, fresh=False)
    one = json.loads((tmp_path / "model.json").read_text())["model"][0]["operations"]
    cells = [str(number) for number in one.values()]
    assert any(line.split()[2:] == cells for line in done.stdout.splitlines() if line.startswith("lit_data "))
    small[1] = "2"
    two = count_operations(load_config(ROOT / "configs/lit_data.yaml", list(zip(small[::2], small[1::2]))))
    # A block: 2 norms, 6 products with 3 biases, softmax, GELU, 2 sums, a scale, about 10 reshapes, and all gradients.
    assert 40 < two["forward and backward"] - one["forward and backward"] < 70
    assert 10 < one["update"] == two["update"] < 42  # one update for all parameters
