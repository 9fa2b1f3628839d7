"""launch/slurm.sbatch on a real Slurm, a cluster of this machine alone. It needs root, and Debian's packages:

apt-get install -y slurmctld slurmd slurm-client munge
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flow
import pytest

ROOT = Path(__file__).parents[1]
DAEMONS = ("munged", "slurmctld", "slurmd")
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, DAEMONS)), reason="needs root and Slurm"
    ),
]

# Two processors, whatever the machine has, and a second start after seconds.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=localhost Default=YES
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=10
SchedulerParameters=bf_interval=1
"""
# Task 0 makes a mistake or crashes, while task 1 trains and saves when it is told to.
FAKE = """#!/usr/bin/env bash
trap 'exit 75' TERM
if [[ $1 != wait && $JAX_PROCESS_ID == 0 ]]; then sleep 0.5; exit "$1"; fi
touch "started-$SLURM_JOB_ID"
for i in {1..600}; do sleep 0.1; done
"""
REAL = f"""#!/usr/bin/env bash
exec {sys.executable} -m ptft "$@"
"""


def until(what: Callable[[], Any], seconds: int = 600) -> Any:
    """The first value that is something."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return value


class Cluster:
    """A folder that jobs of two tasks are submitted from."""

    def __init__(self, folder: Path):
        plain = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") and k != "RESTARTS"}
        devices = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1")
        self.env = plain | {
            "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT), "XLA_FLAGS": devices
        }  # fmt: skip
        self.project = folder / "project"
        (self.project / ".venv" / "bin").mkdir(parents=True)
        (self.project / "launch").symlink_to(ROOT / "launch")

    def call(self, *command: object, **more: Any) -> str:
        return subprocess.run(
            [str(c) for c in command],
            env=self.env,
            cwd=self.project,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            **more,
        ).stdout

    def submit(self, ptft: str, *command: object) -> str:
        file = self.project / ".venv" / "bin" / "ptft"
        file.write_text(ptft)
        file.chmod(0o755)
        size = ("--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0")
        return self.call("sbatch", "--parsable", *size, "launch/slurm.sbatch", *command, check=True).strip()

    def job(self, number: str) -> dict[str, str]:
        words = self.call("scontrol", "show", "job", "--oneliner", number, check=True).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def end(self, number: str) -> tuple[str, str, str]:
        """(state, exit code, how often it was started again), when it has ended."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        job = until(lambda: (j := self.job(number))["JobState"] in over and j)
        return job["JobState"], job["ExitCode"].split(":")[0], job["Restarts"]

    def log(self, number: str) -> str:
        return (self.project / f"ptft-{number}.log").read_text()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in (a, b)]
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=ports))
    made = Cluster(folder)
    munge = [f"--{name}={folder}/{file}" for name, file in
             (("key-file", "key"), ("socket", "munge.socket"), ("pid-file", "munged.pid"),
              ("seed-file", "seed"), ("log-file", "munged.log"))]  # fmt: skip
    commands = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", "localhost"]]
    running = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("w") as out:
                running.append(subprocess.Popen(command, env=made.env, stdout=out, stderr=out))
            until(lambda: (folder / "munge.socket").exists(), 20)
        until(
            lambda: "idle" in made.call("sinfo", "--noheader", "--format=%T", stderr=subprocess.DEVNULL), 30
        )
        yield made
        made.call("scancel", "--user=root")
        until(lambda: not made.call("squeue", "--noheader"), 60)
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.mark.promise("R20")
def test_a_preempted_job_goes_on(cluster: Cluster, tmp_path: Path):
    """To the same result as one that nobody disturbed."""
    values = flow.pretraining(
        tmp_path, train_for="200 steps", log_every="5 steps", eval_every="50 steps", save_every="20 steps"
    )
    config = flow.page(tmp_path / "page.py", values)
    runs = tmp_path / "disturbed", tmp_path / "alone"
    number = cluster.submit(REAL, "train", "--config", config, "--workdir", runs[0])
    until(lambda: (runs[0] / "metrics.jsonl").exists() and flow.lines(runs[0]))
    cluster.call("scancel", "--signal=TERM", number, check=True)
    assert cluster.end(number) == ("COMPLETED", "0", "1"), cluster.log(number)
    assert cluster.log(number).count("preempted at") == 1 and "and saved step" in cluster.log(number)
    other = cluster.submit(REAL, "train", "--config", config, "--workdir", runs[1])
    assert cluster.end(other) == ("COMPLETED", "0", "0"), cluster.log(other)
    assert flow.state(runs[0], 200) == flow.state(runs[1], 200)
    assert [x.get("step") for x in flow.lines(runs[0])] == [x.get("step") for x in flow.lines(runs[1])]


def test_a_mistake_of_one_task_ends_the_job(cluster: Cluster):
    number = cluster.submit(FAKE, "2", "--workdir", "run")
    assert cluster.end(number) == ("FAILED", "2", "0"), cluster.log(number)


def test_a_crash_of_one_task_starts_all_again(cluster: Cluster):
    number = cluster.submit(FAKE, "7", "--workdir", "run")
    assert cluster.end(number) == ("FAILED", "7", "2"), cluster.log(number)
    assert "2 of at most 3" in cluster.log(number) and "saved no newer step" in cluster.log(number)


def test_a_job_that_was_cancelled_stays_so(cluster: Cluster):
    number = cluster.submit(FAKE, "wait", "--workdir", "run")
    until((cluster.project / f"started-{number}").exists)
    cluster.call("scancel", number, check=True)
    assert cluster.end(number)[::2] == ("CANCELLED", "0"), cluster.log(number)
    assert "cancelled, or already requeued" in cluster.log(number)
    assert not list(cluster.project.glob("*.crashes")) + list(cluster.project.glob("*.preempted"))
