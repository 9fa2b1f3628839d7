"""The shell scripts, run with stand-ins for Python, pip, gcloud and Slurm."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(p for p in [*(ROOT / "launch").iterdir(), ROOT / ".ci" / "run"] if p.suffix != ".txt")

# A Python that makes environments in its own image and writes down what pip is asked to do.
FAKE = """#!/usr/bin/env bash
[[ $1 == --version ]] && {{ echo "Python {version}"; exit; }}
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
elif [[ "$1 $2" == "-m pip" ]]; then
  echo "$*" >>"$PIP_LOG"
  [[ ! -e $PIP_LOG.broken ]]
elif [[ $1 == -m ]]; then
  echo "ran $*"
elif [[ $2 == *print*version_info* ]]; then
  echo "{version}"
elif [[ $2 == *version_info* ]]; then
  exit {too_old}
else
  exec "{real}" "$@"
fi
"""


def sh(*command: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "DRY_RUN")}
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env={**plain, **env}, capture_output=True, text=True, timeout=60
    )


def fake_python(path: Path, version: str = "3.12.1", too_old: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.format(version=version, too_old=too_old, real=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the scripts touch, in a folder with a space in its name."""
    root = tmp_path / "my clone"
    shutil.copytree(ROOT / "launch", root / "launch")
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse(script: Path):
    assert sh("bash", "-n", script).stderr == ""


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
@pytest.mark.parametrize("python, found", [("3.9.2", "is 3.9.2"), (None, "no Python at ")])
def test_unfit_python(clone: Path, script: str, python: str | None, found: str):
    path = clone / "old python"
    if python:
        fake_python(path, python, too_old=1)
    out = sh("bash", clone / "launch" / script, PYTHON=str(path))
    assert (
        out.returncode == 2
        and "needs Python 3.11 or newer" in out.stderr
        and found in out.stderr
        and str(path) in out.stderr
    )
    assert f"bash launch/{script}" in out.stderr and not (clone / ".venv").exists()


def test_second_call_installs_nothing(clone: Path, tmp_path: Path):
    python = fake_python(tmp_path / "python3")
    log = tmp_path / "pip"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PIP_LOG": str(log)}

    def call(script: str, *args: str, **more: str) -> tuple[str, list[str]]:
        log.write_text("")
        out = sh("bash", clone / "launch" / script, *args, cwd=tmp_path, **{**env, **more})
        assert out.returncode == 0, out.stderr
        return out.stdout, log.read_text().splitlines()

    out, pip = call("test.sh", "-k", "a b")
    assert "creating .venv with Python 3.12.1" in out and "ran -m pytest -k a b\n" in out
    assert len(pip) == 1 and f"--editable {clone}[dev] --constraint {clone}/launch/constraints.txt" in pip[0]
    assert call("test.sh")[1] == []
    out, pip = call("test.sh", "--peers", "-k", "a b")
    assert "ran -m pytest -k a b\n" in out and "[dev,peers]" in pip[0]
    out, pip = call("quickstart.sh", PYTHON=str(python))
    assert (
        "[dev,peers,bench]" in pip[0]
        and "ran -m ptft bench" in out
        and out.endswith("runs/quickstart/bench/report.html\n")
    )
    # as it can be typed
    assert '\n$ .venv/bin/ptft predict --workdir runs/quickstart/use --text "It returns' in out

    with (clone / "launch" / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert "[dev,peers,bench]" in call("quickstart.sh")[1][0]
    assert call("test.sh")[1] == []


def test_quickstart_first_then_tests(clone: Path, tmp_path: Path):
    env = {"PYTHON": str(fake_python(tmp_path / "python")), "PIP_LOG": str(tmp_path / "pip")}
    sh("bash", clone / "launch" / "quickstart.sh", **env)
    assert "dev]" not in (tmp_path / "pip").read_text()
    out = sh("bash", clone / "launch" / "test.sh", **env)
    assert "creating .venv" not in out.stdout and "[bench,dev]" in (tmp_path / "pip").read_text()


def test_a_broken_installation_is_repaired(clone: Path, tmp_path: Path):
    env = {"PYTHON": str(fake_python(tmp_path / "python")), "PIP_LOG": str(tmp_path / "pip")}
    (tmp_path / "pip.broken").touch()
    out = sh("bash", clone / "launch" / "test.sh", **env)
    assert out.returncode == 1 and "the installation failed" in out.stderr and "ran" not in out.stdout
    (clone / ".venv" / "half").touch()
    (tmp_path / "pip.broken").unlink()
    out = sh("bash", clone / "launch" / "test.sh", **env)
    assert out.returncode == 0 and "creating .venv" in out.stdout and not (clone / ".venv" / "half").exists()


def test_constraints_are_exact_versions_and_nothing_else():
    lines = [
        line
        for line in (ROOT / "launch" / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    pin = re.compile(r'([A-Za-z0-9_.-]+)==[0-9][0-9a-z.]*(; python_version (<|>=) "3\.12")?')
    names = [found[1].lower().replace("_", "-") for line in lines if (found := pin.fullmatch(line))]
    assert len(names) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        re.split(r"[<>=\[]", d)[0].lower().replace("_", "-")
        for d in project["dependencies"]
        + project["optional-dependencies"]["dev"]
        + project["optional-dependencies"]["peers"]
    }
    assert wanted <= set(names)


def test_tpu_vm_dry_run():
    env = {"DRY_RUN": "1", "PROJECT": "p", "ZONE": "z"}
    out = sh(
        "bash",
        ROOT / "launch" / "tpu_vm.sh",
        "slice",
        "train",
        "--config",
        "configs/pretrain.py:size=base",
        **env,
    )
    lines = out.stdout.splitlines()
    assert out.returncode == 0 and out.stderr == ""
    for line, words in zip(
        lines,
        ["queued-resources create slice --node-id slice", "git ", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"],
        strict=True,
    ):
        assert words in line
    assert "--spot --project p --zone z" in lines[0] and all("--worker=all" in line for line in lines[2:])
    assert "ptft\\ train\\ --config\\ configs/pretrain.py:size=base" in lines[-1]
    assert sh("bash", ROOT / "launch" / "tpu_vm.sh", "slice", "train", DRY_RUN="1", ZONE="z").returncode != 0
    assert "usage" in sh("bash", ROOT / "launch" / "tpu_vm.sh").stderr


def local(*command: str) -> subprocess.CompletedProcess[str]:
    return sh("bash", ROOT / "launch" / "local.sh", *command)


def test_local_processes_know_their_place():
    out = local("3", "bash", "-c", 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"')
    lines = sorted(out.stdout.splitlines())
    assert out.returncode == 0 and [re.sub(r"127\.0\.0\.1:\d+", "A", line) for line in lines] == [
        f"[{i}] A 3 {i}" for i in range(3)
    ]
    assert len({line.split()[1] for line in lines}) == 1


def test_local_stops_the_others_when_one_fails():
    out = local("2", "bash", "-c", "((JAX_PROCESS_ID)) && exit 7; exec sleep 50")
    assert out.returncode == 7 and "process 1 failed with exit code 7" in out.stderr
    assert local("2", "bash", "-c", "exit $((75 * JAX_PROCESS_ID))").returncode == 75
    assert local("two", "true").returncode == 2


def test_local_passes_a_preemption_on():
    command = 'trap "echo saved; exit 75" TERM; echo ready; for i in {1..500}; do sleep 0.1; done'
    with subprocess.Popen(
        ["bash", ROOT / "launch" / "local.sh", "2", "bash", "-c", command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and sorted(out.splitlines()) == ["[0] saved", "[1] saved"]


def test_slurm_job_requeues_itself_when_preempted(tmp_path: Path):
    for name, text in {
        "scontrol": 'echo "scontrol $*"',
        "srun": 'shift; SLURM_PROCID=1 "$@"',
        ".venv/bin/ptft": 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $*"; exit $RC',
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    env = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "12",
        "SLURM_NTASKS": "2",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    for code in (75, 0, 2):
        out = sh("bash", ROOT / "launch" / "slurm.sbatch", "train", "--config", "a b", RC=str(code), **env)
        assert out.returncode == code and "1 of 2: train --config a b\n" in out.stdout
        assert ("scontrol requeue 12" in out.stdout) == (code == 75)
