"""Schedule, optimizer, losses, evaluation and checkpoints."""

import logging
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import official
import paddle
import paddle.nn.functional as F
import pytest
from conftest import ROOT

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import write_text
from t2t_vit.config import load_config
from t2t_vit.data.batch import Normalize
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import EvalLoader
from t2t_vit.models.t2t import T2TViT
from t2t_vit.models.zoo import create_model
from t2t_vit.runs.run_folder import RunFolder
from t2t_vit.training import evaluator
from t2t_vit.training.evaluator import evaluate, evaluate_all
from t2t_vit.training.losses import CrossEntropy
from t2t_vit.training.optimizer import Optimizer
from t2t_vit.training.parameters import parameter_groups
from t2t_vit.training.schedule import learning_rate, total_epochs
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_model
from t2t_vit.weights.load import load_pretrained


def recipe(**keys):
    return load_config(ROOT / "configs/t2t_vit_7.yaml", [(f"TRAIN.{key}", str(value)) for key, value in keys.items()])


def lit_config(*pairs):
    return load_config(ROOT / "configs/lit_data.yaml", pairs)


# --- Schedule ---


def test_learning_rate_is_the_official_one():
    train = recipe().TRAIN
    rates = [learning_rate(epoch, train) for epoch in range(total_epochs(train))]
    assert len(rates) == 310
    assert rates[0] == 1e-6
    assert rates[5] == pytest.approx(1e-6 + 5 * (1e-3 - 1e-6) / 10)
    assert rates[10] == pytest.approx(0.9973e-3, rel=1e-4)  # the cosine counts from epoch 0
    assert rates[150] == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5))
    assert rates[300:] == [1e-5] * 10
    assert all(a < b for a, b in zip(rates[:9], rates[1:10])) and all(
        a > b for a, b in zip(rates[10:300], rates[11:300])
    )


def test_no_warmup_starts_at_the_base():
    assert learning_rate(0, recipe(WARMUP_EPOCHS=0).TRAIN) == 1e-3


# --- Optimizer ---


def test_only_weights_decay():
    groups = parameter_groups(create_model("t2t_vit_7"))
    assert all(name.endswith(".weight") and ".norm" not in name for name in groups["decayed"])
    assert "cls_token" in groups["undecayed"] and "norm.weight" in groups["undecayed"]
    assert set(groups["frozen"]) == {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}
    # 2 performers x (kqv, proj, 2 MLP), project, 7 blocks x (qkv, proj, 2 MLP), head
    assert len(groups["decayed"]) == 2 * 4 + 1 + 7 * 4 + 1


def test_decay_applies_only_to_those_weights():
    # A gradient of zero leaves to AdamW nothing but the decay.
    model = create_model("t2t_vit_7", num_classes=3)
    optimizer = Optimizer(model, recipe(WEIGHT_DECAY=0.1).TRAIN)
    optimizer.inner.set_lr(0.5)
    before = {name: p.numpy() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if not parameter.stop_gradient:
            parameter.grad = paddle.zeros_like(parameter)
    optimizer.collect_gradients()
    optimizer.inner.step()
    decayed = set(parameter_groups(model)["decayed"])
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if name in decayed else 1
        assert np.allclose(parameter.numpy(), factor * before[name], atol=1e-7), name


@pytest.mark.parametrize("tokens_type", ["performer", "transformer"])
def test_twenty_adamw_steps_follow_the_official_losses(tokens_type):
    model = official.set_weights(T2TViT(tokens_type=tokens_type, **official.TINY))
    optimizer = Optimizer(model, recipe(WEIGHT_DECAY=0.05).TRAIN)
    optimizer.inner.set_lr(1e-3)
    x, labels = paddle.to_tensor(official.images(8, 64, seed=5)), paddle.arange(8)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(x), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.collect_gradients()
        optimizer.inner.step()
    assert losses == pytest.approx(official.FIGURES[f"tiny_{tokens_type}"]["adamw_losses"], abs=1e-3)


def test_optimizer_state_moves_to_another_instance():
    cfg = lit_config()
    x, y = paddle.randn([4, 3, 16, 16]), paddle.to_tensor([0, 1, 2, 3])

    def step(model, optimizer):
        F.cross_entropy(model(x), y).backward()
        optimizer.collect_gradients()
        optimizer.inner.step()

    models = [build_model(cfg) for _ in range(2)]
    optimizers = [Optimizer(model, cfg.TRAIN) for model in models]
    for model in models:
        model.eval()
    step(models[0], optimizers[0])
    checkpoint.load_state(models[1], {k: v.numpy() for k, v in models[0].state_dict().items()}, "memory")
    state = {key: value.numpy() for key, value in optimizers[0].state().items()}
    assert len(state) == 4 * (len(list(models[0].parameters())) - 3)  # two moments and two powers of each trained one
    optimizers[1].load_state(state, "memory")
    for model, optimizer in zip(models, optimizers):
        step(model, optimizer)
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        assert (a.numpy() == b.numpy()).all(), a.name


# --- Losses ---


def test_label_smoothing_by_definition():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 5)), np.array([0, 1, 2, 3, 4, 0])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = np.full((6, 5), 0.1 / 5)
    target[range(6), labels] += 0.9
    loss = CrossEntropy(0.1)(paddle.to_tensor(logits), paddle.to_tensor(labels))
    assert loss.item() == pytest.approx(-(target * log_p).sum(1).mean())
    plain = CrossEntropy(0.0)(paddle.to_tensor(logits), paddle.to_tensor(labels))
    assert plain.item() == pytest.approx(-log_p[range(6), labels].mean())


# --- Evaluation ---


@pytest.mark.parametrize("batch_size", [7, 360, 500])
def test_evaluation_is_exact_for_any_batch_size(batch_size):
    cfg = lit_config(("VAL.BATCH_SIZE", str(batch_size)))
    split = load_data(cfg, ["val"])[1]["val"]
    paddle.seed(0)
    model = build_model(cfg)
    loader = EvalLoader(split, cfg)
    scores = evaluate(model, loader, cfg)
    assert model.training and scores.num_images == 360

    whole = lit_config(("VAL.BATCH_SIZE", "360"))
    model.eval()
    images, labels = next(iter(EvalLoader(split, whole)))
    with paddle.no_grad():
        logits = model(Normalize(cfg)(images)).numpy().astype(np.float64)
    labels = labels.numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    order = np.argsort(-logits, axis=1)
    assert scores.loss == pytest.approx(-log_p[range(360), labels].mean(), rel=1e-5)
    assert scores.top1 == (order[:, 0] == labels).mean()
    assert scores.top5 == (order[:, :5] == labels[:, None]).any(1).mean()


def test_several_models_are_evaluated_in_one_pass_with_the_same_scores():
    cfg = lit_config(("VAL.BATCH_SIZE", "100"))
    loader, passes = EvalLoader(load_data(cfg, ["val"])[1]["val"], cfg), []
    models = {"raw": build_model(cfg), "ema": build_model(cfg)}
    alone = {name: evaluate(model, loader, cfg) for name, model in models.items()}
    assert alone["raw"] != alone["ema"]

    class Counted:
        def __len__(self):
            return len(loader)

        def __iter__(self):
            passes.append("images are read")
            return iter(loader)

    assert evaluate_all(models, Counted(), cfg) == alone and len(passes) == 1
    assert evaluate_all(models, loader, cfg, must_stop=lambda: True) is None


def test_lines_of_an_evaluation(monkeypatch, warned):
    """The accuracy so far, and the seconds of reading since the last line, after every third batch and the last."""
    now, labels = [100.0], [0, 0, 1, 1, 2, 2, 0, 1]
    monkeypatch.setattr(evaluator, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    warned.set_level(logging.INFO, "t2t")

    class Loader:
        def __len__(self):
            return 4

        def __iter__(self):
            for number in range(4):
                now[0] += 0.5
                yield paddle.zeros([2, 16, 16, 3], "uint8"), paddle.to_tensor(labels[2 * number : 2 * number + 2])

    def always_first(images):
        now[0] += 3
        return paddle.to_tensor([[1.0, 0.0, 0.0]] * len(images))

    seen = []
    scores = evaluate(always_first, Loader(), lit_config(), 3, lambda logits, labels: seen.extend(labels.tolist()))
    assert warned.messages == [
        "Step [3/4], acc: 0.3333, read_time: 1.5000",
        "Step [4/4], acc: 0.3750, read_time: 0.5000",
    ]
    assert scores.line() == "images: 8, loss: 1.1764, top-1: 0.3750, top-5: 1.0000" and seen == labels


# --- Checkpoints ---


def test_weights_load_with_plain_paddle_too(tmp_path):
    model = build_model(lit_config())
    checkpoint.save(tmp_path / "w.pdparams", model.state_dict())
    plain = paddle.load(str(tmp_path / "w.pdparams"))
    ours = checkpoint.read(tmp_path / "w.pdparams")
    assert set(plain) == set(ours) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert (plain[name].numpy() == tensor.numpy()).all() and (ours[name] == tensor.numpy()).all()
    assert os.listdir(tmp_path) == ["w.pdparams"]


def test_files_of_paddle_save_are_read(tmp_path):
    layer = paddle.nn.Linear(3, 2)
    for protocol in (2, 4):
        paddle.save(layer.state_dict(), str(tmp_path / "w.pdparams"), protocol=protocol)
        assert (checkpoint.read(tmp_path / "w.pdparams")["weight"] == layer.weight.numpy()).all()
        paddle.save({"model": layer.state_dict(), "epoch": 3}, str(tmp_path / "s.pdparams"), protocol=protocol)
        tree = checkpoint.read(tmp_path / "s.pdparams")
        assert tree["epoch"] == 3 and (tree["model"]["bias"] == layer.bias.numpy()).all()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class HostileArray(np.ndarray):
    pass


class Call:
    """Pickles as a call of `function` with `arguments`, then BUILD with `state`."""

    def __init__(self, function, *arguments, state=None):
        self.recipe = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.recipe


def forged_dtype(code, *state):
    return Call(np.dtype, code, state=state)


@pytest.mark.parametrize(
    "value, named",
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (np.load, "numpy.load"),
        (HostileArray((2,)), "HostileArray"),
        ({"w": np.array([{}], object)}, "array of objects"),
        ({"w": {1, 2}}, "not a Paddle weights file"),
        ({"w": b"raw"}, "a bytes"),
        ({"w": (1, 2)}, "a tuple"),
        ({1: 2}, "a dict"),
        ({"w": np.array(["a"])}, "an array of U1"),
        ({"w": Call(np.ndarray, (1,), "O", b"12345678")}, "a call of numpy.ndarray"),
        ({"w": forged_dtype("f4", 3, "|", None, ("x",), {}, 8, 1, 0)}, "array of records"),
        ({"w": forged_dtype("f4", 3, "|", (np.dtype("f4"), (10,)), None, None, 8, 4, 0)}, "array of records"),
        ({"w": Call(dict.fromkeys, ["a"])}, "builtins.getattr"),
    ],
)
def test_anything_but_data_is_refused_by_name(tmp_path, value, named):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(UserError, match=named):
        checkpoint.read(path)


def test_array_of_another_size_than_its_data_is_refused(tmp_path):
    path = tmp_path / "w.pdparams"
    whole = pickle.dumps({"w": np.zeros(3, "f4")}, protocol=4)
    path.write_bytes(whole.replace(b"K\x03\x85", b"K\x7f\x85"))  # shape (3,) becomes (127,)
    assert path.read_bytes() != whole
    with pytest.raises(UserError, match="another size than its data"):
        checkpoint.read(path)


def test_circular_file_fits_no_model(tmp_path):
    path = tmp_path / "w.pdparams"
    circle = {}
    circle["w"] = circle
    path.write_bytes(pickle.dumps(circle, protocol=4))
    with pytest.raises(UserError, match="w.pdparams"):
        load_pretrained(build_model(lit_config()), path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04", None, "truncated", "list"])
def test_damaged_weights_are_named(tmp_path, content):
    path = tmp_path / "w.pdparams"
    checkpoint.save(path, build_model(lit_config()).state_dict())
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:50000])
    elif content == "list":
        path.write_bytes(pickle.dumps([1, 2]))
    elif content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="w.pdparams (is damaged|not found|refused: it contains a list)"):
        checkpoint.read(path)


def test_weights_of_another_model_are_named(tmp_path):
    path = tmp_path / "w.pdparams"
    checkpoint.save(path, build_model(lit_config()).state_dict())
    with pytest.raises(UserError, match=r"head.weight is \[128, 10\].*\[128, 7\].*trained for 10 classes"):
        load_pretrained(build_model(lit_config(("MODEL.NUM_CLASSES", "7"))), path)
    with pytest.raises(UserError, match="no blocks.6.norm1.weight.*more"):
        load_pretrained(build_model(lit_config(("MODEL.T2T.DEPTH", "8"))), path)
    with pytest.raises(UserError, match="blocks.5.norm1.weight is unknown to the model"):
        load_pretrained(build_model(lit_config(("MODEL.T2T.DEPTH", "5"))), path)


def test_low_precision_weights_are_read_by_value(tmp_path):
    path = tmp_path / "w.pdparams"
    model = build_model(lit_config())
    for dtype, error in (("bfloat16", 2**-7), ("float16", 2**-10), ("float64", 0)):  # paddle 2.6 cuts, 3 rounds
        checkpoint.save(path, {name: tensor.astype(dtype) for name, tensor in model.state_dict().items()})
        other = build_model(lit_config())
        load_pretrained(other, path)
        for name, tensor in other.state_dict().items():
            assert np.allclose(tensor.numpy(), model.state_dict()[name].numpy(), rtol=error, atol=1e-7), name
    checkpoint.save(path, {name: tensor.astype("int64") for name, tensor in model.state_dict().items()})
    with pytest.raises(UserError, match="cls_token has type int64"):
        load_pretrained(model, path)


def test_links_and_pipes_are_written_through(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    write_text(tmp_path / "pipe", "through")
    assert reader.communicate()[0] == "through" and (tmp_path / "pipe").is_fifo()


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "w.pdparams"
    checkpoint.save(path, {"a": 1})
    with pytest.raises(Exception, match="pickle|serial|save"):
        checkpoint.save(path, {"a": lambda: 1})
    assert checkpoint.read(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["w.pdparams"]


def test_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    code = f"""
import os, sys; sys.path.insert(0, {str(ROOT / "tools")!r})
from t2t_vit.common.files import atomic_path
with atomic_path({str(path)!r}) as temporary:
    temporary.write_text("half of the n")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert path.read_text() == "old"


def test_superseded_state_can_be_resumed(tmp_path):
    run = RunFolder(lit_config(("OUTPUT", str(tmp_path)), ("LOG", str(tmp_path))))
    run.folder.mkdir()
    for name, text in (("latest", "newer"), ("latest.1", "older")):
        (run.folder / f"{name}.pdparams").write_text(text)
    run._make_latest(run.folder / "latest.1.pdparams")
    assert run.latest.read_text() == "older"
    run._make_latest(run.folder / "latest.pdparams.old")
    assert run.latest.read_text() == "newer"
