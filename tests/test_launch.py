"""GPUS, NNODES, MASTER and NODE_RANK: the options of Paddle's launcher, and two machines in two network namespaces."""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, ROOT, error_line, tool
from launching import PLAIN

import launch
from t2t_vit.common import ranks
from t2t_vit.common.errors import UserError
from t2t_vit.parallel import gpu


def script(name, *words, **variables):
    """A finished scripts/NAME.sh."""
    return subprocess.run(["bash", ROOT / f"scripts/{name}.sh", *map(str, words)], capture_output=True, text=True,
                          env={**ENVIRONMENT, **variables}, timeout=200)  # fmt: skip


# --- Cards ---


@pytest.fixture
def four_cards(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "count", lambda: 4)


@pytest.mark.usefixtures("four_cards")
@pytest.mark.parametrize("text, cards", [("0", "0"), ("0, 1", "0,1"), ("3,1", "3,1"), (" all ", "0,1,2,3")])
def test_gpus_for_the_launcher(text, cards):
    assert launch.chosen_gpus(text) == cards


@pytest.mark.usefixtures("four_cards")
@pytest.mark.parametrize("text", ["4", "0,0", "0,,1", "0 1", "-1", "a", "0,9"])
def test_gpus_that_do_not_exist_are_an_error(text):
    with pytest.raises(UserError, match=f"^GPUS is {text} but must be all, or some of 0,1,2,3, separated by commas$"):
        launch.chosen_gpus(text)


@pytest.mark.usefixtures("four_cards")
def test_only_visible_gpus_can_be_chosen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr(gpu, "count", lambda: 2)
    assert launch.chosen_gpus("5") == "5" and launch.chosen_gpus("all") == "2,5"
    with pytest.raises(UserError, match="some of 2,5"):
        launch.chosen_gpus("0")


@pytest.mark.usefixtures("four_cards")
def test_command_of_one_process_sees_the_chosen_gpus(monkeypatch):
    started = []

    def execv(*command):
        started.append(command)
        raise StopIteration  # it does not return

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(os, "environ", {"GPUS": "3", "NNODES": "2"})
    with pytest.raises(StopIteration):
        launch.main(argparse.Namespace(words=["tools/predict.py", "x.png"]))
    assert started == [(sys.executable, [sys.executable, "tools/predict.py", "x.png"])]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_gpus_variable_without_a_gpu_is_an_error():
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has cards")
    done = script("val", GPUS="0,1")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: GPUS is 0,1 but no GPU is available: this PaddlePaddle \S+ is a CPU build; .*\n",
                        done.stderr)  # fmt: skip


# --- Machines ---


def named(monkeypatch, address, own=None):
    """Patch the resolver: every host has an address, and this machine has `own` on every route."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(socket.AF_INET, 0, 0, "", (address, 0))])
    if own:
        monkeypatch.setattr(launch, "_own_address", lambda _: own)


def test_master_name_with_a_loopback_address_uses_the_outside_address(monkeypatch):
    own = launch._own_address("192.0.2.1")
    if not own:
        pytest.skip("no route outside")
    named(monkeypatch, "127.0.1.1")
    assert launch.addresses("debian", 0) == (own, own)
    assert launch.addresses("debian", 1) == (own, own)  # a second launcher on this machine
    assert launch.addresses("localhost", 0) == ("127.0.1.1", "127.0.1.1")
    monkeypatch.setattr(launch, "_own_address", lambda _: None)
    with pytest.raises(UserError, match="^MASTER names debian, which resolves to a loopback address here; give the"):
        launch.addresses("debian", 0)


def test_other_machines_use_their_address_on_the_route_to_the_first(monkeypatch):
    named(monkeypatch, "10.1.2.3", own="10.1.9.9")
    assert launch.addresses("first", 1) == ("10.1.2.3", "10.1.9.9")
    with pytest.raises(UserError, match=r"^NODE_RANK is 0 here, but MASTER first \(10.1.2.3\) is not an address of"):
        launch.addresses("first", 0)


@pytest.mark.parametrize("message, variables", [
    ("NNODES is 2: set MASTER to HOST:PORT .*, and NODE_RANK to 0 on it", {"NNODES": "2"}),
    ("NNODES is 'two' but must be a whole number, 1 or more", {"NNODES": "two"}),
    ("NODE_RANK is '-1' but must be a whole number, 0", {"NNODES": "2", "MASTER": "localhost:80", "NODE_RANK": "-1"}),
    ("NODE_RANK is 2 but must be below NNODES, 2", {"NNODES": "2", "MASTER": "localhost:80", "NODE_RANK": "2"}),
    ("MASTER is 'localhost' but must be HOST:PORT", {"NNODES": "2", "MASTER": "localhost", "NODE_RANK": "0"}),
    ("MASTER is 'h:x' but must be HOST:PORT", {"NNODES": "2", "MASTER": "h:x", "NODE_RANK": "0"}),
    ("MASTER names a.invalid, which has no", {"NNODES": "2", "MASTER": "a.invalid:80", "NODE_RANK": "0"}),
])  # fmt: skip
def test_mistakes_are_one_line(message, variables):
    with pytest.raises(UserError, match=message):
        launch.nodes(variables)


# Two machines with their own names and Debian's /etc/hosts, and a cable between them.
MACHINE = """
printf '127.0.0.1 localhost\n127.0.1.1 {own}\n{address} {other}\n' > {folder}/hosts
mount --bind {folder}/hosts /etc/hosts && hostname {own} && cd {root} && exec bash scripts/train.sh "$@"
"""


@pytest.fixture
def two_machines():
    """[prefix of a command that runs it on machine 0, on machine 1]."""
    names = [f"t2t{os.getpid()}{side}" for side in "ab"]
    # The other one is the way outside, too: machines have a default route.
    commands = [f"ip link add {names[0]} type veth peer name {names[1]}"]
    for name, own, other in zip(names, ("10.99.0.1", "10.99.0.2"), ("10.99.0.2", "10.99.0.1")):
        inside = f"ip -n {name}"
        commands += [
            f"ip netns add {name}",
            f"ip link set {name} netns {name}",
            f"{inside} addr add {own}/24 dev {name}",
            f"{inside} link set {name} up",
            f"{inside} link set lo up",
            f"{inside} route add default via {other}",
        ]
    try:
        for command in commands:
            try:
                subprocess.run(command.split(), check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"network namespaces need root and iproute2: {error}")
        yield [["ip", "netns", "exec", name, "unshare", "-mu"] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            subprocess.run(["ip", "link", "del", name], capture_output=True)


def test_two_machines_train_together(two_machines, tmp_path):
    words = ["configs/lit_data.yaml", "--device", "cpu", "--batch-size", "400", *map(str, PLAIN)]
    processes = []
    for rank, (own, other, address) in enumerate([("nodea", "nodeb", "10.99.0.2"), ("nodeb", "nodea", "10.99.0.1")]):
        folder = tmp_path / own
        folder.mkdir()
        machine = MACHINE.format(own=own, other=other, address=address, folder=folder, root=ROOT)
        variables = {"NNODES": "2", "MASTER": "nodea:8090", "NODE_RANK": str(rank), "HTTP_PROXY": "http://192.0.2.9:1"}
        command = [*two_machines[rank], "bash", "-c", machine, "bash", *words, "--output", str(folder / "out")]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                          env={**ENVIRONMENT, **variables}))  # fmt: skip
    try:
        printed = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.terminate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    assert "node 0 of 2: address 10.99.0.1, master 10.99.0.1:8090\n" in printed[0]
    assert "node 1 of 2: address 10.99.0.2, master 10.99.0.1:8090\n" in printed[1]
    assert "2 processes" in (tmp_path / "nodea/out/lit_data.log").read_text()


# --- Variables of the launcher without a launcher ---


@pytest.mark.parametrize("variables, name", [
    ({"TRAINERS_NUM": "2"}, "PADDLE_TRAINER_ENDPOINTS is not set"),
    ({"TRAINERS_NUM": "two"}, "PADDLE_TRAINERS_NUM is two"),
    ({"TRAINERS_NUM": "0"}, "PADDLE_TRAINERS_NUM is 0"),
    ({"TRAINER_ID": "1"}, "PADDLE_TRAINER_ID is 1"),
    ({"TRAINER_ID": "x"}, "PADDLE_TRAINER_ID is x"),
    ({"LOCAL_SIZE": "many"}, "PADDLE_LOCAL_SIZE is many"),
    ({"TRAINERS_NUM": "2", "TRAINER_ENDPOINTS": "a,b"}, "PADDLE_TRAINER_ENDPOINTS is a,b"),
    ({"TRAINERS_NUM": "2", "TRAINER_ENDPOINTS": "a:1,b:2"}, "PADDLE_CURRENT_ENDPOINT is not set"),
])  # fmt: skip
def test_inconsistent_launcher_variables_are_an_error(monkeypatch, variables, name):
    for key in ranks.NAMES:
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(f"PADDLE_{key}", value)
    with pytest.raises(UserError, match=f"^the variables of Paddle's launcher in the environment .* {name}[,;]"):
        ranks.check()
    ranks.forget()
    ranks.check()
    assert (ranks.rank(), ranks.world_size(), ranks.local_size()) == (0, 1, 1)


def test_inconsistent_launcher_variables_stop_only_a_training(tmp_path, monkeypatch):
    for name, value in {"TRAINERS_NUM": "2", "TRAINER_ID": "1", "LOCAL_SIZE": "x"}.items():
        monkeypatch.setenv(f"PADDLE_{name}", value)
    assert "variables of Paddle's launcher" in error_line("train", "--output", tmp_path)
    assert not list(tmp_path.iterdir())
    assert tool("val").stdout.splitlines()[-1].startswith("lit_data final val acc is:0.9")
    assert tool("predict").stdout.splitlines()[-1] == "class_id is: 3"


def test_a_command_is_needed():
    with pytest.raises(UserError, match="give a command"):
        launch.main(argparse.Namespace(words=[]))
