"""The sheets of `visualize.py attention` and `features`: contents, options, and errors in one line."""

import contextlib
import io

import numpy as np
import paddle
import pytest
from conftest import ROOT, tool
from PIL import Image

import visualize as command
from t2t_vit.config import load_config
from t2t_vit.explain.attention import attention_maps, gradient_maps, rollout, token_box
from t2t_vit.explain.overlay import SIDE, STRENGTH, cell, coloured, enlarged, overlay, stretched
from t2t_vit.models.zoo import create_model
from t2t_vit.pictures import attention, features
from t2t_vit.pictures.features import principal_colours
from t2t_vit.pictures.look import BlockMaps, StageMaps, chosen_methods
from t2t_vit.pictures.model import open_pictures
from t2t_vit.pictures.options import attention_parser
from t2t_vit.pictures.sheet import BAR, INK, LINE, MARGIN, RIGHT, TILE, WRONG
from t2t_vit.weights import checkpoint

DIGITS = ROOT / "lit_data/val/7"
PIT = ["--config", str(ROOT / "output/pretrained/lit_data_pit/config.yaml")]
PICTURES = ("attention", "features")


def visualize(picture, *words, status=0):
    """Run the command in this process and return what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
        for stream in (out, err):
            stream.reconfigure = lambda **options: None
        command.main([picture, *map(str, words)])
    assert exit.value.code == status, err.getvalue()
    return out.getvalue() if status == 0 else err.getvalue()


def mistake(picture, *words):
    lines = visualize(picture, *words, status=1).splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def sheet(tmp_path):
    """A function that runs a command and gives the pixels of its sheet."""

    def drawn(picture, *words):
        path = tmp_path / "sheet.png"
        visualize(picture, *words, "--sheet", path)
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    return drawn


def opened(run):
    """(model of a run that comes with the repository, `Picture` of a digit)"""
    folder = ROOT / "output/pretrained" / run
    args = attention_parser().parse_args(["--config", str(folder / "config.yaml"), "--sheet", "x.png"])
    vars(args).update(weights_named=False, pretrained=str(folder / "best.pdparams"), words=few_digits(1), inputs=[])
    found, (picture,), _ = open_pictures(args, load_config(args.config, []))
    return found.model, picture


def few_digits(count=2):
    return sorted(DIGITS.glob("*.png"))[:count]


# --- Files ---


def test_the_commands_draw_the_shipped_model_without_options(tmp_path):
    for picture in PICTURES:
        done = tool("visualize", picture, cwd=tmp_path, fresh=False)
        weights, written = done.stdout.splitlines()
        assert weights.startswith(f"note: t2t_vit_7 with {ROOT}/output/") and "best.pdparams" in weights
        assert (written, done.stderr) == (f"{picture}.png written", "")
        with Image.open(tmp_path / f"{picture}.png") as image:
            assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 24)) > 500


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name, start", [("x.pdf", b"%PDF"), ("x.JPG", b"\xff\xd8\xff"), ("x.png", b"\x89PNG")])
def test_forms_of_the_sheet(picture, name, start, tmp_path):
    said = visualize(picture, *few_digits(), "--sheet", tmp_path / name)
    assert said.splitlines()[1:] == [f"{tmp_path / name} written"]
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_overlays_are_written_too(tmp_path):
    words = [*few_digits(), "--overlays", tmp_path / "maps", "--sheet", tmp_path / "x.png"]
    visualize("attention", *words)
    names = [f"{number:03d}-{path.stem}-{method}"
             for number, path in enumerate(few_digits(), start=1)
             for method in ("attention-block-6", "gradient-blocks-1-to-6", "rollout-blocks-1-to-6")]  # fmt: skip
    assert sorted(path.stem for path in (tmp_path / "maps").iterdir()) == sorted(names)
    with Image.open(tmp_path / "maps" / f"{names[0]}.png") as image:
        assert (image.format, image.size, image.mode) == ("PNG", (SIDE, SIDE), "RGB")


def test_unreadable_images_are_reported_and_the_others_drawn(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for picture in PICTURES:
        said = visualize(picture, tmp_path / "broken.png", *few_digits(1), "--sheet", tmp_path / "x.png", status=1)
        assert said == f"error: image {tmp_path / 'broken.png'} cannot be read: not an image\n"
        (tmp_path / "x.png").unlink()
        assert mistake(picture, tmp_path / "broken.png", "--sheet", tmp_path / "x.png") == said.strip()
        assert not (tmp_path / "x.png").exists()


def test_folders_globs_and_count(tmp_path):
    words = ["--sheet", tmp_path / "x.png", "--overlays", tmp_path / "maps", "--method", "attention"]
    assert "drawn" not in visualize("attention", f"{DIGITS}/*1.png", *few_digits(1), *words)
    assert len(list((tmp_path / "maps").iterdir())) == len(list(DIGITS.glob("*1.png"))) == 4
    words[3] = tmp_path / "more"
    said = visualize("attention", DIGITS, "--count", 9, *words)
    assert "drawing 9 of 36 images, evenly spaced; raise --count to draw more\n" in said
    names = [path.stem.split("-")[1] for path in sorted((tmp_path / "more").iterdir())]
    assert names == [path.stem for path in sorted(DIGITS.iterdir())[::4]]
    assert "2 of 36 images" in visualize("features", DIGITS, "--count", 2, *words[:2])


# --- What they show ---


def test_the_sheet_shows_the_picture_as_the_model_sees_it(sheet, tmp_path):
    big = Image.new("RGB", (60, 32), (250, 20, 20))
    big.paste((10, 30, 240), (14, 0, 46, 32))  # the square in the middle, which the evaluation crops
    big.save(tmp_path / "wide.png")
    pixels = sheet("attention", tmp_path / "wide.png")
    bottom = pixels.shape[0] - MARGIN - 2 * LINE - 14  # of the picture
    drawn = pixels[bottom - TILE : bottom, MARGIN : MARGIN + TILE]
    assert (drawn == (10, 30, 240)).all(-1).mean() > 0.6 and not (drawn == (250, 20, 20)).all(-1).any()


@pytest.fixture
def rows_of_sheet(monkeypatch, tmp_path):
    """A function that runs `attention` and gives the rows of its sheet."""
    found = []
    monkeypatch.setattr(attention, "save_sheet", lambda rows, path: found.append(rows))

    def rows(*words):
        visualize("attention", *words, "--sheet", tmp_path / "x.png")
        return found.pop()

    return rows


def test_each_caption_is_there_once_and_wrong_answers_are_red(rows_of_sheet, tmp_path):
    digit, wrong, elsewhere = few_digits(1)[0], tmp_path / "3" / "a.png", tmp_path / "own" / "b.png"
    for path in (wrong, elsewhere):  # a seven in the folder of the threes, and where the class is not known
        path.parent.mkdir()
        path.write_bytes(digit.read_bytes())
    heading, header, *lines = rows_of_sheet(digit, wrong, elsewhere)
    captions = ("attention", "block 6"), ("rollout", "blocks 1 to 6"), ("gradient", "blocks 1 to 6")
    assert [cell and cell.lines for cell in header] == 2 * [None, *captions]
    assert [len(line) for line in lines] == [8, 4]
    pictures = [line[place] for line in lines for place in (0, 4)[: len(line) // 4]]
    assert [cell.lines[0] for cell in pictures] == ["7/" + digit.name, "3/a.png", "own/b.png"]
    assert [cell.lines[1][1] for cell in pictures] == [RIGHT, WRONG, INK]
    assert {cell.lines[1][0].split()[1] for cell in pictures} == {"seven"}
    assert all(not cell.lines for line in lines for cell in line if cell not in pictures)
    assert heading.notes[-1] == "red: the predicted class is not that of the image's folder"
    heading, header, *_ = rows_of_sheet(digit, "--query", "2,3", "--method", "rollout")
    assert header[1].lines == ("rollout", "blocks 1 to 6", "row 2, column 3")
    assert not any(note.startswith("red") for note in heading.notes)


def test_the_sheet_has_a_colour_bar(sheet):
    pixels = sheet("attention", *few_digits(1))
    row = pixels[MARGIN + 42 + 3 * LINE + LINE // 2]  # below the notes of the three methods
    colours = coloured(np.linspace(0, 1, 256)[None])[0]
    expected = np.asarray(Image.fromarray(colours[None]).resize(BAR))[0]
    assert any((row[x : x + BAR[0]] == expected).all() for x in range(len(row) - BAR[0]))


def test_every_option_changes_the_maps():
    options = [
        "", "--block 1", "--block all", "--head 2", "--head all", "--block all --head all", "--method attention",
        "--method rollout", "--method gradient", "--class-id 2", "--query 1,2", "--query 2,1",
        "--query 1,2 --query 2,1", "--query 1,2 --method rollout", "--stage 1", "--stage 2", "--stage 1 --query 3,4",
    ]  # fmt: skip
    model, picture = opened("lit_data")
    names, seen = [str(number) for number in range(10)], set()
    for words in options:
        args = attention_parser().parse_args(words.split())
        maps_of = StageMaps(args, model) if args.stage else BlockMaps(args, model, names, chosen_methods(args))
        maps = tuple((each.values.tobytes(), each.mark) for row in maps_of(picture)[1] for each in row)
        assert maps and maps not in seen, words
        seen.add(maps)


def test_maps_have_the_values_that_the_model_computes(tmp_path):
    digit = few_digits(1)[0]
    model, (_, image, pixels) = opened("lit_data_pit")
    maps = attention_maps(model, pixels)
    expected = {
        "attention-block-1": maps[0][0].mean(axis=0)[0, 1:].reshape([7, 7]),
        "attention-block-3-head-2": maps[2][0, 1, 0, 1:].reshape([4, 4]),
        "rollout-blocks-1-to-4": rollout(maps[:4], model)[0],
        "gradient-three-blocks-1-to-5": gradient_maps(model, pixels, class_ids=3)[0],
        "attention-block-5-row-2-column-3": maps[4][0].mean(axis=0)[1 + 4 + 2, 1:].reshape([4, 4]),
    }
    runs = [["--block", "all"], ["--block", 3, "--head", 2], ["--class-id", 3], ["--query", "2,3"]]
    for words in runs:
        visualize("attention", digit, *PIT, *words, "--overlays", tmp_path / "maps", "--sheet", tmp_path / "x.png")
    for name, values in expected.items():
        fine, coarse = token_box(model, 0), token_box(model)
        mark = cell(coarse, (4, 4), (1, 2)) if "row-2" in name else None
        drawn = overlay(image, values.numpy(), box=fine if len(values) == 7 else coarse, mark=mark)
        with Image.open(tmp_path / "maps" / f"001-{digit.stem}-{name}.png") as found:
            assert (np.asarray(found) == np.asarray(drawn)).all(), name


def test_a_pit_and_its_distillation_token(sheet, tmp_path):
    for words in ([], ["--block", "all", "--head", "all"], ["--query", "4,4"]):
        sheet("attention", *few_digits(1), *PIT, *words)
    sheet("features", *few_digits(1), *PIT)
    distilled = ["--config", ROOT / "output/pretrained/lit_data_pit/config.yaml", "MODEL.NAME", "pit_ti_distilled"]
    sizes = dict(image_size=16, num_classes=10, base_dims=[32, 32], depth=[2, 3], heads=[2, 4], patch_size=4, stride=2)
    checkpoint.save(tmp_path / "x.pdparams", create_model("pit_ti_distilled", **sizes).state_dict())
    distilled += ["MODEL.PRETRAINED", tmp_path / "x.pdparams"]
    one, other = (
        sheet("attention", *few_digits(1), *distilled, "--token", token) for token in ("class", "distillation")
    )
    assert one.shape == other.shape and (one != other).any()


@pytest.mark.parametrize("tokens_type", ["transformer", "convolution", "patch"])
def test_other_kinds_of_models(tokens_type, sheet, tmp_path):
    sizes = dict(depth=2, embed_dim=24, num_heads=3, token_dim=8)
    model = create_model("t2t_vit_7", image_size=32, in_chans=1, num_classes=10, tokens_type=tokens_type, **sizes)
    checkpoint.save(tmp_path / "x.pdparams", model.state_dict())
    keys = {**{f"T2T.{key.upper()}": value for key, value in sizes.items()}, "T2T.TOKENS_TYPE": tokens_type}
    keys |= {"T2T.SPLITS": "[[7, 4, 2], [3, 2, 1], [3, 2, 1]]", "PRETRAINED": tmp_path / "x.pdparams"}
    words = [word for key, value in keys.items() for word in (f"MODEL.{key}", value)]
    words += ["DATA.IMAGE_SIZE", 32, "DATA.CHANNELS", 1, "DATA.MEAN", "[0.5]", "DATA.STD", "[0.5]", *few_digits(1)]
    for picture in PICTURES:
        sheet(picture, *words)
    if tokens_type == "transformer":
        sheet("attention", *words, "--stage", 2)
    else:
        said = mistake("attention", *words, "--stage", 1)
        assert said == "error: --stage needs a T2T module with attention, which this model does not have"


# --- Overlay ---


def test_overlay_is_dark_at_the_smallest_and_light_at_the_largest_value():
    image = Image.new("RGB", (200, 300), (100, 100, 100))
    values = np.zeros((3, 2))
    values[2, 1] = 7
    pixels = np.asarray(overlay(image, values)).astype(int)
    assert pixels.shape == (300, 200, 3)
    for place, colour in (((280, 180), (252, 255, 164)), ((20, 20), (0, 0, 4))):
        assert np.abs(pixels[place] - ((1 - STRENGTH) * 100 + STRENGTH * np.array(colour))).max() < 2
    assert (np.asarray(overlay(image, 5 * values + 3)) == pixels).all(), "only the ratio counts"
    assert np.asarray(overlay(image, np.full((3, 2), 0.2))).std(axis=(0, 1)).max() == 0


def test_small_and_grey_pictures_are_enlarged():
    image = Image.fromarray(np.arange(16 * 20, dtype=np.uint16).reshape(16, 20).astype(np.uint8))
    pixels = np.asarray(enlarged(image))
    assert pixels.shape == (256, 320, 3) and (pixels[::16, ::16, 0] == np.asarray(image)).all()
    assert np.asarray(overlay(image, np.eye(4))).shape == (256, 320, 3)
    assert enlarged(Image.new("L", (300, 400))).size == (300, 400)


def test_colours_and_cells():
    ramp = coloured(np.linspace(0, 1, 100)[None])[0].astype(int).sum(axis=1)
    assert (np.diff(ramp) >= 0).all() and ramp[0] < 10 < 600 < ramp[-1]
    values = np.random.default_rng(0).random((4, 5))
    seen, relative = stretched(values, (100, 60), (0, 0, 100, 60)), (values - values.min()) / np.ptp(values)
    assert (seen == relative.repeat(15, 0).repeat(20, 1)).all(), "no value that the map does not have"


def test_a_map_lies_in_its_box():
    values = np.zeros((3, 4))
    values[1, 2] = 1
    for left, top, side in ((10, 20, 30), (-50, -35, 60), (-3.5, 4.25, 24)):
        box = (left, top, left + 4 * side, top + 3 * side)
        seen = stretched(values, (160, 120), box)
        assert seen.shape == (120, 160)
        rows, columns = np.mgrid[:120, :160] + 0.5
        peak = [(seen * places).sum() / seen.sum() for places in (columns, rows)]
        assert peak == pytest.approx([left + 2.5 * side, top + 1.5 * side], abs=0.6)
    beside = stretched([[0.0, 1.0]], (100, 50), (40, 10, 60, 20))
    assert (beside[:, :50] == 0).all() and (beside[:, 50:] == 1).all()
    image = Image.fromarray(np.zeros((16, 16), np.uint8))
    large = np.asarray(overlay(image, values, box=(2, 2, 10, 8))).astype(int)
    expected = STRENGTH * coloured(stretched(values, (256, 256), (32, 32, 160, 128)))
    assert np.abs(large - expected).max() <= 1


def test_the_frame_is_around_the_token():
    image, values = Image.new("RGB", (320, 160), "red"), np.zeros((2, 4))
    mark = cell((0, 0, 320, 160), (2, 4), (1, 2))
    plain, framed = (np.asarray(overlay(image, values, mark=each)) for each in (None, mark))
    changed = (plain != framed).any(axis=2)
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (77, 159) and (columns[0], columns[-1]) == (157, 242)
    assert not changed[84:156, 164:236].any()


# --- Features ---


def test_principal_components_as_colours():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], 40)
    tokens = np.eye(8)[groups] * 10 + 0.01 * rng.standard_normal((120, 8))
    colours, share = principal_colours(tokens)
    assert colours.shape == (120, 3) and colours.dtype == np.uint8 and 0.99 < share <= 1
    means = [colours[groups == group, :2].astype(int).mean(axis=0) for group in range(3)]
    assert all(np.abs(means[a] - means[b]).max() > 100 for a, b in ((0, 1), (0, 2), (1, 2)))
    assert all(colours[groups == group, :2].std(axis=0).max() < 20 for group in range(3))
    flat, share = principal_colours(np.ones((10, 2)))
    assert flat.shape == (10, 3) and share == 0


def test_columns_of_the_sheet_of_features():
    tokens = np.random.default_rng(0).standard_normal((2, 6, 2)).astype(np.float32)
    cells = features.column([("block 1", paddle.to_tensor(part[None]), (2, 3)) for part in tokens])
    expected, _ = principal_colours(tokens.reshape(12, 2).astype(np.float64))
    assert (np.stack([cell.image for cell in cells]) == expected.reshape(2, 2, 3, 3)).all()
    assert {cell.lines for cell in cells} == {("block 1", "2x3, width 2", "variance 100%")}


def test_chosen_blocks():
    layers = [[(name, None, None)] for name in ("soft split 1", *(f"block {n}" for n in range(1, 6)))]
    for block, names in ((None, "1 3 5"), (2, "2"), ("all", "1 2 3 4 5")):
        found = [layer[0][0] for layer in features.chosen(layers, block)]
        assert found == ["soft split 1", *(f"block {n}" for n in names.split())]


def test_every_option_of_features_changes_the_sheet(sheet):
    seen = []
    for words in ([], ["--block", 2], ["--block", "all"]):
        pixels = sheet("features", *few_digits(1), *words)
        assert not any(pixels.shape == other.shape and (pixels == other).all() for other in seen), words
        seen.append(pixels)


# --- Mistakes ---


@pytest.mark.parametrize(
    "words, message",
    [
        (["--block", "7"], "--block is 7 but the model's blocks are 1 to 6"),
        (["--head", "5"], "--head is 5 but the heads of block 6 are 1 to 4"),
        ([*PIT, "--block", "all", "--head", "3"], "--head is 3 but the heads of block 1 are 1 to 2"),
        (["--class-id", "10"], "--class-id is 10 but the classes are 0 to 9"),
        (["--class-id", "-1"], "--class-id is -1 but the classes are 0 to 9"),
        (["--class-id", "1", "--method", "rollout"], "--class-id and --method rollout cannot be combined"),
        (["--class-id", "1", "--head", "2", "--block", "1"], "--class-id and --head cannot be combined"),
        (["--method", "rollout", "--head", "2"], "--head and --method rollout cannot be combined"),
        (["--method", "gradient", "--query", "1,1"], "--query and --method gradient cannot be combined"),
        (["--query", "5,1"], "--query is 5,1 but the tokens of block 6 are 1,1 to 4,4"),
        ([*PIT, "--block", "all", "--query", "7,5"], "--query is 7,5 but the tokens of block 3 are 1,1 to 4,4"),
        (["--stage", "3"], "--stage is 3 but the layers of the T2T module are 1 to 2"),
        (["--stage", "1", "--query", "17,1"],
         "--query is 17,1 but the tokens of layer 1 of the T2T module are 1,1 to 16,16"),
        (["--stage", "1", "--class-id", "3"], "--class-id and --stage cannot be combined"),
        (["--stage", "1", "--method", "rollout"], "--method and --stage cannot be combined"),
        ([*PIT, "--stage", "1"], "--stage needs a T2T module with attention, which this model does not have"),
        (["--token", "distillation"], "--token distillation needs a distilled model"),
        (["--sheet", "x.gif"], "--sheet x.gif must end in .png, .jpg, .jpeg or .pdf"),
        (["--sheet", "LICENSE/x.png"], "LICENSE/x.png: cannot be written: "),
        (["--overlays", "LICENSE"], "LICENSE/x.png: cannot be written: "),
        (["absent.png"], "image absent.png not found"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sheet = [] if "--sheet" in words else ["--sheet", tmp_path / "x.png"]
    assert mistake("attention", *words, *sheet).startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_mistakes_of_features_are_one_line(tmp_path):
    said = mistake("features", "--block", "7", "--sheet", tmp_path / "x.png")
    assert said == "error: --block is 7 but the model's blocks are 1 to 6"
    assert mistake("features", "--sheet", "x.txt").startswith("error: --sheet x.txt must end in")


@pytest.mark.parametrize("words", ["--block 0", "--count 0", "--head some", "--query 3", "--query 0,1"])
def test_invalid_numbers_are_usage_errors(words):
    option, value = words.split()
    assert f"argument {option}: '{value}' must be" in visualize("attention", option, value, status=2)


def test_exported_model_has_no_attention(tmp_path):
    for name in ("x.onnx", "x.json"):
        said = mistake("attention", "--pretrained", tmp_path / name, "--sheet", tmp_path / "x.png")
        assert said.startswith(f"error: {tmp_path / name} is an exported model: give the weights")
