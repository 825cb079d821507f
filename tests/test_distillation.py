"""Distillation: losses, choice of the teacher, its images, and resumed runs."""

import re
import shutil
import signal

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, few_digits, tool
from resuming import at_step, send

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.models.zoo import create_model
from t2t_vit.training.losses import CrossEntropy, DistillationLoss, prediction
from t2t_vit.training.teacher import Teacher
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights import checkpoint

SHIPPED = "output/pretrained/lit_data/config.yaml"
SOFT = ("DISTILL.TYPE", "soft", "DISTILL.TEACHER", SHIPPED, "DISTILL.ALPHA", "0.9", "DISTILL.TAU", "2.0")
SMALL_PIT = (
    "MODEL.NAME", "pit_ti_distilled", "MODEL.NUM_CLASSES", "10", "MODEL.PIT.PATCH_SIZE", "4", "MODEL.PIT.STRIDE", "2",
    "MODEL.PIT.BASE_DIMS", "[8, 8]", "MODEL.PIT.DEPTH", "[1, 1]", "MODEL.PIT.HEADS", "[1, 2]",
)  # fmt: skip


def config(*words, file="configs/lit_data.yaml"):
    pairs = ("TRAIN.BATCH_SIZE", "8", "TRAIN.EMA_DECAY", "0.0", *words)
    return load_config(ROOT / file, list(zip(pairs[::2], pairs[1::2])))


@pytest.fixture
def plain_config(tmp_path):
    """A config without the sizes that lit_data.yaml sets for a T2T-ViT, so that MODEL.NAME may be a PiT."""
    path = tmp_path / "digits.yaml"
    path.write_text("DATA: {PATH: lit_data, CLASSES: '', IMAGE_SIZE: 16, NUM_WORKERS: 0}\n")
    return path


# --- The losses ---

RNG = np.random.default_rng(3)
CLASS, DISTILLED, TEACHER_LOGITS = RNG.standard_normal((3, 4, 5))  # logits (B, K)
LABELS = np.array([0, 4, 2, 2])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def loss_of(kind, alpha, tau, outputs, targets, smoothing=0.0):
    distill = config("DISTILL.TYPE", kind, "DISTILL.TEACHER", "pit_ti", "DISTILL.ALPHA", str(alpha),
                     "DISTILL.TAU", str(tau)).DISTILL  # fmt: skip
    tensors = tuple(paddle.to_tensor(o, "float32") for o in outputs)
    outputs = tensors if len(tensors) > 1 else tensors[0]
    loss = DistillationLoss(CrossEntropy(smoothing), distill)
    return loss(outputs, paddle.to_tensor(targets), paddle.to_tensor(TEACHER_LOGITS, "float32")).item()


def by_hand(kind, alpha, tau, class_logits, distilled_logits):
    truth = -log_softmax(class_logits)[range(4), LABELS].mean()
    if kind == "hard":
        distance = -log_softmax(distilled_logits)[range(4), TEACHER_LOGITS.argmax(-1)].mean()
    else:
        p, q = log_softmax(TEACHER_LOGITS / tau), log_softmax(distilled_logits / tau)
        distance = tau**2 * (np.exp(p) * (p - q)).sum() / p.size
    return (1 - alpha) * truth + alpha * distance


@pytest.mark.parametrize("kind, tau", [("hard", 1.0), ("soft", 1.0), ("soft", 3.0)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_losses_are_those_computed_by_hand(kind, tau, alpha):
    one_head = loss_of(kind, alpha, tau, (CLASS,), LABELS)
    assert one_head == pytest.approx(by_hand(kind, alpha, tau, CLASS, CLASS), rel=1e-5)
    two_heads = loss_of(kind, alpha, tau, (CLASS, DISTILLED), LABELS)
    assert two_heads == pytest.approx(by_hand(kind, alpha, tau, CLASS, DISTILLED), rel=1e-5)


def test_mixed_targets_and_smoothing_do_not_affect_the_distance():
    mixed = np.eye(5, dtype="float32")[LABELS] * 0.7 + 0.06
    truth = -(mixed * log_softmax(CLASS)).sum(-1).mean()
    expected = 0.5 * truth + by_hand("hard", 0.5, 1.0, CLASS, CLASS) + 0.5 * log_softmax(CLASS)[range(4), LABELS].mean()
    assert loss_of("hard", 0.5, 1.0, (CLASS,), mixed, smoothing=0.3) == pytest.approx(expected, rel=1e-5)
    assert loss_of("hard", 1.0, 1.0, (CLASS,), LABELS, 0.0) == loss_of("hard", 1.0, 1.0, (CLASS,), LABELS, 0.3)


def test_gradient_of_the_soft_loss_is_the_difference_of_the_probabilities():
    # F.kl_div, given log-probabilities for a target, is 0 with a gradient of 0.
    loss = DistillationLoss(CrossEntropy(0.0), config(*SOFT, "DISTILL.ALPHA", "1.0").DISTILL)
    logits = paddle.to_tensor(CLASS, "float32", stop_gradient=False)
    loss(logits, paddle.to_tensor(LABELS), paddle.to_tensor(TEACHER_LOGITS, "float32")).backward()
    expected = 2.0 * (np.exp(log_softmax(CLASS / 2)) - np.exp(log_softmax(TEACHER_LOGITS / 2))) / CLASS.size  # tau = 2
    assert np.abs(expected).max() > 0.01
    assert np.allclose(logits.grad.numpy(), expected, atol=1e-6)


def test_prediction_of_two_heads_is_their_mean():
    both = paddle.to_tensor(CLASS, "float32"), paddle.to_tensor(DISTILLED, "float32")
    assert np.allclose(prediction(both).numpy(), (CLASS + DISTILLED) / 2, atol=1e-6)


# --- The teacher ---


def one_step(cfg):
    paddle.seed(0)
    step = TrainStep(cfg)
    step.model.train()
    batches = next(iter(TrainLoader(load_data(cfg, ["train"])[1]["train"], cfg).epoch_steps(0)))
    return step, lambda: step(batches, 1e-3, 0, 0)


def test_teacher_sees_the_same_batch_in_eval_mode_and_is_never_changed():
    step, run = one_step(config(*SOFT, "AUG.MIXUP", "0.8", "AUG.ERASE_PROB", "1.0", "CPU.MICRO_BATCH", "0"))
    before = {name: tensor.numpy().copy() for name, tensor in step.teacher.model.state_dict().items()}
    seen = {}
    for who, model in (("student", step.model), ("teacher", step.teacher.model)):
        model.register_forward_pre_hook(lambda layer, inputs, who=who: seen.update({who: inputs[0].numpy()}))
    run()
    assert (seen["student"] == seen["teacher"]).all() and seen["student"].shape == (8, 3, 16, 16)
    assert not step.teacher.model.training and step.model.training
    assert step.teacher(paddle.zeros([1, 3, 16, 16])).stop_gradient
    for name, tensor in step.teacher.model.state_dict().items():
        assert (tensor.numpy() == before[name]).all() and tensor.grad is None, name


def test_teacher_changes_the_step_but_not_the_initial_weights():
    alone, step_alone = one_step(config())
    distilled, step_distilled = one_step(config(*SOFT))
    weights = [{name: t.numpy().copy() for name, t in step.model.state_dict().items()} for step in (alone, distilled)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    step_alone(), step_distilled()
    assert (alone.model.head.weight.numpy() != distilled.model.head.weight.numpy()).any()


def test_distilled_model_learns_with_both_heads_with_and_without_a_teacher(plain_config):
    for words in ((), SOFT, (*SOFT, "DISTILL.TYPE", "hard")):
        step, run = one_step(config(*SMALL_PIT, *words, file=plain_config))
        heads = [step.model.head.weight, step.model.head_dist.weight]
        before = [head.numpy().copy() for head in heads]
        run()
        assert all((head.numpy() != old).any() for head, old in zip(heads, before)), words


def test_teacher_from_paddle_vision(tmp_path):
    paddle.seed(0)
    model = paddle.vision.models.resnet18(num_classes=10)
    checkpoint.save(tmp_path / "resnet18.pdparams", model.state_dict())
    words = ("DISTILL.TYPE", "hard", "DISTILL.TEACHER", "resnet18", "DISTILL.WEIGHTS", f"{tmp_path}/resnet18.pdparams")
    step, run = one_step(config(*words))
    images = paddle.randn([2, 3, 16, 16])
    model.eval()
    assert (step.teacher(images).numpy() == model(images).numpy()).all()
    run()
    assert (step.teacher(images).numpy() == model(images).numpy()).all()  # batch statistics too


def test_teacher_of_grey_images_by_its_name(tmp_path):
    model = create_model("t2t_vit_7", num_classes=10, image_size=16, in_chans=1)
    checkpoint.save(tmp_path / "grey.pdparams", model.state_dict())
    words = ("DISTILL.TEACHER", "t2t_vit_7", "DISTILL.WEIGHTS", f"{tmp_path}/grey.pdparams", "DATA.CHANNELS", "1")
    teacher = Teacher(config("DISTILL.TYPE", "hard", *words, "DATA.MEAN", "[0.5]", "DATA.STD", "[0.5]"))
    images = paddle.randn([2, 1, 16, 16])
    model.eval()
    assert (teacher(images).numpy() == model(images).numpy()).all()


SHIPPED_WEIGHTS = ("DISTILL.WEIGHTS", "output/pretrained/lit_data/best.pdparams")


@pytest.mark.parametrize(
    "words, message",
    [
        (("DISTILL.TEACHER", "resnet51"), "unknown model resnet51; did you mean resnet50"),
        (("DISTILL.TEACHER", "output/x"), "unknown model output/x; .* To use a run, give its config.yaml"),
        (("DISTILL.TEACHER", "output/none/config.yaml"), "config .*output/none/config.yaml not found"),
        (("DISTILL.TEACHER", "resnet50"), "set DISTILL.WEIGHTS to the file of its weights$"),
        (("DISTILL.TEACHER", "t2t_vit_24"), "of its weights, or to t2t_vit_24 for the published ones$"),
        (("DISTILL.TEACHER", "resnet50", "DISTILL.WEIGHTS", "absent.pdparams"), "not found; set DISTILL.WEIGHTS"),
        (("DISTILL.TEACHER", "resnet18", *SHIPPED_WEIGHTS), "TEACHER resnet18, .*does not fit the model"),
        (("DISTILL.TEACHER", SHIPPED, "DATA.MEAN", "[0.5, 0.5, 0.5]"), r"has DATA.MEAN \[0.485"),
        (("DISTILL.TEACHER", SHIPPED, "MODEL.NUM_CLASSES", "7"), "must have the student's 7 classes"),
        (("DISTILL.TEACHER", "resnet50", *SHIPPED_WEIGHTS, "DATA.CHANNELS", "1", "DATA.MEAN", "[0.5]",
          "DATA.STD", "[0.5]"), "takes RGB images"),
    ],
)  # fmt: skip
def test_wrong_teachers_are_named(words, message):
    with pytest.raises(UserError, match=message):
        Teacher(config("DISTILL.TYPE", "hard", *words))


def test_images_that_the_teacher_cannot_take_are_an_error_at_the_start(tmp_path):
    model = paddle.vision.models.googlenet(num_classes=10)
    checkpoint.save(tmp_path / "googlenet.pdparams", model.state_dict())
    words = (
        "DISTILL.TYPE",
        "hard",
        "DISTILL.TEACHER",
        "googlenet",
        "DISTILL.WEIGHTS",
        f"{tmp_path}/googlenet.pdparams",
    )
    with pytest.raises(UserError, match="DISTILL.TEACHER googlenet cannot take images of 16x16 pixels"):
        Teacher(config(*words))


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    for name in ("config.yaml", "best.pdparams", "classes.txt"):
        shutil.copy(ROOT / "output/pretrained/lit_data" / name, tmp_path)
    classes = tmp_path / "classes.txt"
    classes.write_text(classes.read_text().replace("0\t0\t", "0\tnought\t"))
    words = ("--output", tmp_path, "DISTILL.TYPE", "hard", "DISTILL.TEACHER", tmp_path / "config.yaml")
    assert "the teacher has other classes than the data: class 0 is 0 in" in error_line("train", *words)


def test_a_teacher_without_a_type_is_an_error(tmp_path):
    for key in ("DISTILL.WEIGHTS", "DISTILL.TEACHER"):
        line = error_line("train", "--output", tmp_path, key, SHIPPED)
        assert line == f"error: {key} is given, but DISTILL.TYPE '' uses no teacher; set DISTILL.TYPE hard or soft"


def test_teacher_config_and_weights_are_resolved_alike(tmp_path):
    # A relative path of a YAML file counts from the repository, one of the command line from the current folder.
    (tmp_path / "output/pretrained/lit_data").mkdir(parents=True)
    (tmp_path / SHIPPED).write_text("MODEL: {NAME: pit_ti}\n")
    words = ("--config", ROOT / "configs/lit_data_student.yaml", "--output", tmp_path, "TRAIN.TIME_LIMIT", "1s")
    log = tool("train", *words, cwd=tmp_path).stdout
    assert "stopped by" in log and f"with {ROOT}/output/pretrained/lit_data/best.pdparams" in log
    line = error_line("train", *words, "NAME", "other", "DISTILL.TEACHER", SHIPPED, cwd=tmp_path)
    assert f"weights {tmp_path}/output/pretrained/lit_data/best.pdparams not found; set DISTILL.WEIGHTS" in line


def test_settings_that_do_not_fit_are_named():
    for words, message in (
        (("DISTILL.TYPE", "hard"), "DISTILL.TEACHER is '' but must be a model or config"),
        (("DISTILL.TYPE", "firm"), "DISTILL.TYPE is 'firm' but must be hard, soft or \"\""),
        (("DISTILL.ALPHA", "1.5"), "DISTILL.ALPHA is 1.5"),
        (("DISTILL.TAU", "0.0"), "DISTILL.TAU is 0.0"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            config(*words)


# --- The run ---


def test_run_continues_with_its_teacher_only(tmp_path):
    def words(folder, *more):
        short = ("MODEL.T2T.DEPTH", "1", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.COOLDOWN_EPOCHS", "0", "VAL.EVERY", "3")
        short += ("TRAIN.EPOCHS", "3", "TRAIN.BATCH_SIZE", "50")
        return ("--output", tmp_path / folder, *SOFT, *short, *few, *more)

    few = few_digits(tmp_path)

    log = tool("train", *words("whole")).stdout
    assert f"teacher {SHIPPED} with {SHIPPED_WEIGHTS[1]}: soft, 0.9 of the loss" in log
    with at_step(2, 2, send(signal.SIGTERM)):
        assert "stopped by SIGTERM after " in tool("train", *words("cut")).stdout
    weights = checkpoint.read(ROOT / "output/pretrained/lit_data/best.pdparams")
    checkpoint.save(tmp_path / "other.pdparams", {**weights, "head.bias": weights["head.bias"] + 1})
    line = error_line("train", *words("cut", "DISTILL.WEIGHTS", tmp_path / "other.pdparams"))
    assert "checksum of the teacher's weights" in line
    tool("train", *words("cut"))
    whole, cut = (
        checkpoint.read(tmp_path / folder / "lit_data/latest.pdparams")["model"] for folder in ("whole", "cut")
    )
    assert all((whole[name] == cut[name]).all() for name in whole)
