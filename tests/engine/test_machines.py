# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Many machines, here all on this one: they meet or say whom they wait for, and leave together."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from detrex_mammo.config import find_shipped
from detrex_mammo.engine import rendezvous
from detrex_mammo.engine.launch import World, launch
from detrex_mammo.engine.main import main
from detrex_mammo.engine.rendezvous import (
    claim,
    enter,
    join_seconds,
    meet,
    open_store,
    parse_address,
)
from detrex_mammo.engine.supervision import End, is_lost_connection, raise_end
from detrex_mammo.errors import UserError
from tests.engine.test_launch import DETECTOR
from tests.engine.tiny import read_lines, write_config
from tests.tiny_configs import write_coco

ROOT = Path(find_shipped("configs/common/train.py")).parents[2]
TOOL = str(ROOT / "tools/train_net.py")


@pytest.fixture
def short(monkeypatch) -> None:
    monkeypatch.setenv(rendezvous.VARIABLE, "0.5")


class Clock:
    """Stands in for the module time: no second passes but those that are slept."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def free_port() -> int:
    """Below 32768, where the system gives nobody else a port until it is used."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


@pytest.mark.parametrize(
    "url",
    ["tcp://host", "host:29500", "tcp://:29500", "tcp://host:port", "tcp://host:70000",
     "tcp://host:0"],
)  # fmt: skip
def test_wrong_address_is_one_sentence(url: str) -> None:
    with pytest.raises(UserError, match="must be tcp://HOST:PORT of the machine with rank 0"):
        World(num_processes=2, dist_url=url).check()


def test_addresses() -> None:
    assert parse_address("tcp://node-1.cluster:29500") == ("node-1.cluster", 29500)
    assert parse_address("tcp://[::1]:29500") == ("::1", 29500)


def test_port_that_is_taken_is_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        world = World(num_processes=2, dist_url=f"tcp://127.0.0.1:{port}")
        with pytest.raises(UserError, match=f"port {port} of this machine cannot be used"):
            launch(int, world)


def test_first_machine_with_another_ones_name_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(rendezvous, "REACH_SECONDS", 0.2)
    with pytest.raises(UserError, match="which this machine cannot reach .* give this machine's"):
        open_store("192.0.2.1", 0)  # an address that no machine has


def test_missing_first_machine_is_waited_for_with_a_line(short, monkeypatch) -> None:
    monkeypatch.setattr(rendezvous, "TELL_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous, "time", Clock())
    told: list[str] = []
    monkeypatch.setattr(rendezvous.logger, "warning", lambda text, *a: told.append(text % a))
    with socket.socket() as held:  # nobody else can listen there meanwhile
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        world = World(2, num_machines=2, machine_rank=1, dist_url=f"tcp://127.0.0.1:{port}")
        whom = f"for the machine with rank 0 at 127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"waited 0.5 seconds {whom}"):
            launch(int, world)
    assert told and told[0].startswith(f"waiting {whom}")


def test_unknown_host_is_not_waited_for() -> None:
    world = World(2, num_machines=2, machine_rank=1, dist_url="tcp://no-such-host.invalid:29500")
    with pytest.raises(UserError, match="'no-such-host.invalid', which is not known here"):
        launch(int, world)


def test_missing_machines_are_named(short) -> None:
    """Three machines of two processes; those of the second one do not come."""
    store = open_store("127.0.0.1", 0)
    for rank in (1, 4, 5):
        store.set(f"detrex_mammo/here/{rank}", "1")
    with pytest.raises(UserError, match=r"for 2 of 6 processes, of the machine\(s\) with rank 1:"):
        meet(store, 0, 6, 2)


def connect(store, count: int) -> list:
    return [enter("127.0.0.1", store.port) for _ in range(count)]


def meet_in_threads(connections: list) -> list:
    """The first of three processes, each as a thread with a connection of its own."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda c, rank: meet(c, rank, 3, 3), connections, range(3)))


def test_processes_that_were_started_again_do_not_meet_those_before(monkeypatch) -> None:
    """torchrun keeps its store; of the second start, at first, one process is not there yet."""
    store = open_store("127.0.0.1", 0)
    for place in meet_in_threads(connect(store, 3)):
        place.set("left", "1")
    two = connect(store, 2)
    with monkeypatch.context() as patch:
        patch.setenv(rendezvous.VARIABLE, "0.5")
        with pytest.raises(UserError, match=r"for \d of 3 processes, of the machine"):
            meet_in_threads(two)
    again = meet_in_threads(connect(store, 3))
    assert not any(place.check(["left"]) for place in again)
    again[0].set("mine", "1")
    assert all(place.check(["mine"]) for place in again)


def test_machines_of_the_same_rank_are_told() -> None:
    store = open_store("127.0.0.1", 0)
    claim(store, 1)
    with pytest.raises(UserError, match="two processes have rank 1: give each machine its own"):
        claim(store, 1)


def test_machines_that_were_told_of_different_worlds_do_not_wait() -> None:
    store = open_store("127.0.0.1", 0)
    claim(store, 0, 2, 2)
    with pytest.raises(UserError, match="this machine has --num-machines 2 --num-gpus 3, but an"):
        claim(store, 3, 2, 3)


def test_torchrun_with_more_processes_on_one_machine_is_one_sentence() -> None:
    """Two on the first and one on the second: all three are told, and none waits."""
    store = open_store("127.0.0.1", 0)
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(meet, connection, rank, 3, local_size)
            for connection, rank, local_size in zip(connect(store, 3), range(3), (2, 2, 1))
        ]
    for job in jobs:
        with pytest.raises(UserError, match="machines have 1 and 2 processes: start as many on"):
            job.result()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_wrong_time_is_one_sentence(text: str, monkeypatch) -> None:
    monkeypatch.setenv(rendezvous.VARIABLE, text)
    with pytest.raises(UserError, match="must be a number of seconds above 0"):
        join_seconds()


def test_lost_connection_is_told_unless_there_is_a_reason() -> None:
    assert is_lost_connection(
        RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    )
    assert not is_lost_connection(RuntimeError("shapes do not fit"))
    with pytest.raises(UserError, match="process 1 of 2 has lost the connection to another one"):
        raise_end(End(1, 3, 2), ["", ""])


LEAVING = """
from torch import multiprocessing
from detrex_mammo.engine.launch import World, launch
from detrex_mammo.errors import UserError

def job():
    global held
    held = [multiprocessing.get_context("spawn").Queue() for _ in range(3)]
    raise UserError("a mistake")

if __name__ == "__main__":
    try:
        launch(job, World(num_processes=2))
    except UserError as error:
        print("told:", error)
"""


def test_processes_that_leave_take_their_semaphores_along(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    output, _ = start(str(tmp_path / "leaving.py")).communicate(timeout=300)
    assert "told: a mistake" in output
    assert "leaked semaphore" not in output


def start(*command: str, **variables: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], env=environment, **pipes)


def machine(rank: int, port: int, config: str, *arguments: str) -> subprocess.Popen:
    """One of two machines with two processes each, as its user starts it."""
    return start(
        TOOL, "--config-file", config, "--num-gpus", "2", "--num-machines", "2",
        "--machine-rank", str(rank), "--dist-url", f"tcp://127.0.0.1:{port}", *arguments,
    )  # fmt: skip


def torchrun(*arguments: str) -> subprocess.Popen:
    return start("-m", "torch.distributed.run", "--standalone", *arguments)


@pytest.mark.slow
def test_two_machines_train_as_one(tmp_path: Path) -> None:
    """Also with four processes of torchrun; each image is evaluated once."""
    config, port = write_config(tmp_path), free_port()
    machines = [
        machine(rank, port, config, f"train.output_dir={tmp_path / 'two'}") for rank in (1, 0)
    ]
    four = torchrun("--nproc-per-node", "4", TOOL, "--config-file", config,
                    f"train.output_dir={tmp_path / 'four'}")  # fmt: skip
    for process in (*machines, four):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    main(["--config-file", config])
    for name in ("two", "four"):
        for key in ("total_loss", "grad_norm", "tiny/error", "tiny/count"):
            expected = read_lines(tmp_path / "run/metrics.json", key)
            found = read_lines(tmp_path / name / "metrics.json", key)
            assert found == pytest.approx(expected, rel=1e-4), (name, key)


# Ends its process, once: at call `at` of the model in the last process.
KILLER = """
import os, signal
from pathlib import Path
from detectron2.utils import comm
from tests.engine import tiny

class Killed(tiny.TinyDetector):
    def __init__(self, flag, at=4, **settings):
        super().__init__(**settings)
        self.flag, self.at = Path(flag), at

    def forward(self, batch):
        is_last = comm.get_rank() == comm.get_world_size() - 1
        if self.training and is_last and self.calls.__reduce__()[1][0] == self.at:
            if not self.flag.exists():
                self.flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch)
"""


def write_killed(folder: Path) -> str:
    """A config whose run loses a process in step 4."""
    (folder / "killer_of_a_process.py").write_text(KILLER)
    path = Path(write_config(folder))
    text = path.read_text().replace(
        "model = L(TinyDetector)(",
        f"import sys\nsys.path.insert(0, {str(folder)!r})\n"
        "from killer_of_a_process import Killed\n"
        f"model = L(Killed)(flag={str(folder / 'flag')!r}, ",
    )
    path.write_text(text)
    return str(path)


@pytest.mark.slow
def test_all_machines_leave_when_one_loses_a_process(tmp_path: Path) -> None:
    config, port = write_killed(tmp_path), free_port()
    machines = [machine(rank, port, config) for rank in (0, 1)]
    first, other = (process.communicate(timeout=300)[0] for process in machines)
    assert [process.returncode for process in machines] == [2, 2], first + other
    assert "process 1 of 2 was killed (SIGKILL)" in other.strip().splitlines()[-1]
    assert "has lost the connection to another one" in first.strip().splitlines()[-1]
    assert "Traceback" not in first + other
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000002.pth"


@pytest.mark.slow
def test_torchrun_starts_a_lost_process_again(tmp_path: Path) -> None:
    """With --resume from the beginning, and the losses of a run that nothing happened to."""
    config = write_killed(tmp_path)
    run = torchrun("--nproc-per-node", "2", "--max-restarts", "1", TOOL,
                   "--config-file", config, "--resume")  # fmt: skip
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert (tmp_path / "flag").exists() and "resumed from" in output
    main(["--config-file", config, f"train.output_dir={tmp_path / 'alone'}"])
    expected = read_lines(tmp_path / "alone/metrics.json", "total_loss")
    found = read_lines(tmp_path / "run/metrics.json", "total_loss")
    assert len(found) == 9 and found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_machine_that_leaves_by_a_signal_takes_the_other_along(tmp_path: Path) -> None:
    """SIGTERM to one of them: both save the same step and end with 143."""
    config, port = write_config(tmp_path), free_port()
    machines = [machine(rank, port, config, "train.max_iter=100000") for rank in (0, 1)]
    while not (tmp_path / "run/last_checkpoint").exists():
        assert all(process.poll() is None for process in machines)
        time.sleep(0.2)
    machines[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in machines]
    assert [process.returncode for process in machines] == [143, 143], outputs


@pytest.mark.slow
def test_predictions_have_one_order(tmp_path: Path) -> None:
    """Five images in one process, two and four: of four, one has two images. Then three of four."""
    data = write_coco(tmp_path, num_images=5)
    config = tmp_path / "config.py"
    config.write_text(DETECTOR.format(json=data, output=tmp_path / "start"))
    main(["--config-file", str(config), "train.max_iter=1"])
    weights = f"train.init_checkpoint={tmp_path / 'start/model_final.pth'}"
    texts, numbers = [], []
    for count in (1, 2, 4):
        folder = tmp_path / str(count)
        main(["--config-file", str(config), "--eval-only", "--num-gpus", str(count), weights,
              f"train.output_dir={folder}", "train.eval_loss=True"])  # fmt: skip
        texts.append((folder / "eval/inference/coco_instances_results.json").read_text())
        numbers.append(json.loads((folder / "eval/metrics.json").read_text()))
    assert len({record["image_id"] for record in json.loads(texts[0])}) == 5
    assert texts[1] == texts[0] and texts[2] == texts[0]
    for found in numbers:
        empty = {name for name, value in found.items() if value is None}
        assert empty == {name for name, value in numbers[0].items() if value is None}
        found = {name: value for name, value in found.items() if isinstance(value, float)}
        assert len(found) > 15
        assert found == pytest.approx({name: numbers[0][name] for name in found}, rel=1e-6)
