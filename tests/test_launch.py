"""The shell scripts, run with stand-ins for Python, pip, gcloud and Slurm."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ptft.cli.main import parser
from ptft.core import integrity

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    p for p in [*(ROOT / "launch").iterdir(), ROOT / ".ci" / "run"] if p.suffix not in (".txt", ".yaml")
)

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
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "DRY_RUN", "RESTARTS")}
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
        ["git ", "queued-resources create slice --node-id slice", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"],
        strict=True,
    ):
        assert words in line
    assert "--spot --project p --zone z" in lines[1] and all("--worker=all" in line for line in lines[2:])
    assert "ptft\\ train\\ --config\\ configs/pretrain.py:size=base" in lines[-1]
    assert sh("bash", ROOT / "launch" / "tpu_vm.sh", "slice", "train", DRY_RUN="1", ZONE="z").returncode == 2
    assert "usage" in sh("bash", ROOT / "launch" / "tpu_vm.sh").stderr


# Writes down what it is asked to do. A call uses up a line of a file: states of the slice, how runs end,
# their newest steps.
GCLOUD = """#!/usr/bin/env bash
next() { head -n 1 "$1" && sed -i 1d "$1"; }
cd "$(dirname "$0")"
case $* in
  *" describe "*) next states ;;
  *newest_step*) echo "Using ssh batch size" >&2 && next steps ;;
  *bin/ptft*) echo run >>asked && exit "$(next codes)" ;;
  *ensure_env*) echo set-up >>asked ;;
  *" scp "*) echo copy >>asked ;;
  *) echo "$4" >>asked ;;
esac
"""
RUN = ["copy", "set-up", "run"]
ANEW = ["delete", "create", *RUN]


@pytest.mark.parametrize(
    ("states", "codes", "steps", "asked", "code"),
    [
        ("NONE WAITING_FOR_RESOURCES ACTIVE ACTIVE", "0", "", ["create", *RUN], 0),
        ("ACTIVE ACTIVE", "0", "", RUN, 0),
        ("ACTIVE ACTIVE", "2", "", RUN, 2),
        ("SUSPENDED NONE ACTIVE ACTIVE", "0", "", ANEW, 0),  # taken away before
        ("NONE FAILED", "", "", ["create"], 1),
        (
            "ACTIVE ACTIVE SUSPENDING SUSPENDED NONE ACTIVE ACTIVE",
            "75 0",
            "",
            RUN + ANEW,
            0,
        ),  # preempted, saved
        ("ACTIVE ACTIVE ACTIVE ACTIVE", "75 0", "", RUN + RUN, 0),  # of the processes alone
        (
            "ACTIVE SUSPENDED SUSPENDED NONE ACTIVE ACTIVE",
            "255 0",
            "",
            RUN + ANEW,
            0,
        ),  # taken away without a word
        ("ACTIVE SUSPENDING SUSPENDED NONE ACTIVE ACTIVE", "0 0", "", RUN + ANEW, 0),
        ("ACTIVE NONE", "75", "", RUN, 75),  # a person deleted it: asked for no more
        ("ACTIVE NONE", "255", "", RUN, 255),
        ("ACTIVE ACTIVE ACTIVE ACTIVE", "7 0", "4", RUN + RUN, 0),  # a crash
        ("ACTIVE " * 6, "7 7 7", "4 4 4", RUN * 3, 7),
        ("ACTIVE " * 8, "7 7 7 134", "1 2 3 4", RUN * 4, 134),
    ],
)
def test_tpu_vm(tmp_path: Path, states: str, codes: str, steps: str, asked: list[str], code: int):
    for name, text in {"gcloud": GCLOUD, "sleep": "#!/bin/sh\n", "git": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name, words in {"states": states, "codes": codes, "steps": steps, "asked": ""}.items():
        (tmp_path / name).write_text("".join(f"{word}\n" for word in words.split()))
    env = {"PROJECT": "p", "ZONE": "z", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    out = sh("bash", ROOT / "launch" / "tpu_vm.sh", "slice", "train", "--workdir", "w", **env)
    assert (tmp_path / "asked").read_text().split() == asked and out.returncode == code, out
    assert {(tmp_path / name).read_text() for name in ("states", "codes", "steps")} == {""}
    assert out.stderr.count("crashed") == sum(c in ("7", "134") for c in codes.split())


def restarts(call: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    script = f'set -euo pipefail; source "$0"; {call}'
    return sh("bash", "-c", script, ROOT / "launch" / "restarts.sh", *args, **env)


def saved(workdir: Path, step: int, kind: str = integrity.RESUME) -> None:
    file = integrity.manifest_file(workdir, kind, step)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def test_the_newest_step_is_read_from_the_manifests(tmp_path: Path):
    run = tmp_path / "a run"

    def newest(*command: object) -> str:
        return restarts('newest_step "$@"', *command).stdout

    assert newest("train", "--workdir", run, "--quiet") == "-1\n"
    for step in (9, 10, 0):
        saved(run, step)
    saved(run, 11, integrity.BEST)
    (run / "manifests" / "checkpoints-x.json").touch()  # no step
    assert newest("train", "--workdir", run, "--quiet") == newest("train", f"--workdir={run}") == "10\n"
    assert newest("train", "--workdir", tmp_path, f"--workdir={run}") == "10\n"  # the last one counts
    assert newest("plan", "--config", "--workdir") == newest() == ""


@pytest.mark.parametrize(
    ("steps", "limit", "last"),
    [
        ([5, 5], "3", "starting again, 2 of at most 3"),
        ([5, 5, 5], "3", "not started again: two starts in a row saved no newer step"),
        ([5, 5, 6], "9", "starting again, 3 of at most 9"),
        ([5, 5, 6, 6], "9", "starting again, 4 of at most 9"),
        ([5, 5, 6, 6, 4], "9", "not started again: two starts in a row saved no newer step"),
        ([1, 2, 3], "3", "starting again, 3 of at most 3"),
        ([1, 2, 3, 4], "3", "not started again: RESTARTS=3"),
        ([5], "0", "not started again: RESTARTS=0"),
        ([""], "3", "not started again: the command has no --workdir to go on from"),
    ],
)
def test_a_crash_deserves_another_start(tmp_path: Path, steps: list[object], limit: str, last: str):
    for step in steps:
        out = restarts('starts_again "$@"', tmp_path / "crashes", 7, step, RESTARTS=limit)
    assert out.stderr.endswith(f"; {last}\n") and len(out.stderr.splitlines()) == 1
    assert out.returncode == ("not" in last)


@pytest.mark.parametrize("limit", ["-1", "many", "1.5", "08"])
def test_a_limit_is_a_whole_number(limit: str):
    out = local("1", "true", RESTARTS=limit)
    assert out.returncode == 2 and f"RESTARTS is '{limit}'; expected a whole number" in out.stderr


def local(*command: object, **env: str) -> subprocess.CompletedProcess[str]:
    return sh("bash", ROOT / "launch" / "local.sh", *command, **env)


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


# Process 1 saves one more step and ends with $CODE until $LAST is saved; process 0 waits for it.
SAVES = """
echo "start $JAX_COORDINATOR_ADDRESS"
cd "${@: -1}/manifests"
if [[ -e checkpoints-$LAST.json ]]; then exit 0; fi
if ((JAX_PROCESS_ID == 0)); then trap 'exit 75' TERM; for i in {1..500}; do sleep 0.1; done; fi
files=(*) && touch "checkpoints-${#files[@]}.json" && exit "$CODE"
"""


def saves(run: Path, last: int, code: int = 7, **env: str) -> subprocess.CompletedProcess[str]:
    saved(run, 0)
    return local("2", "bash", "-c", SAVES, "x", "--workdir", run, LAST=str(last), CODE=str(code), **env)


def test_local_starts_all_again_after_a_crash(tmp_path: Path):
    out = saves(tmp_path, last=2)
    assert out.returncode == 0
    assert [line for line in out.stderr.splitlines() if "process" not in line] == [
        "crashed with exit code 7, newest saved step: 1; starting again, 1 of at most 3",
        "crashed with exit code 7, newest saved step: 2; starting again, 2 of at most 3",
    ]
    meeting_points = [line.split()[-1] for line in out.stdout.splitlines() if line.startswith("[1]")]
    assert len(meeting_points) == len(set(meeting_points)) == 3


@pytest.mark.parametrize("limit", [0, 1])
def test_local_starts_again_so_often(tmp_path: Path, limit: int):
    out = saves(tmp_path, last=9, RESTARTS=str(limit))
    assert out.returncode == 7 and out.stderr.count("starting again") == limit
    assert f"newest saved step: {limit + 1}; not started again: RESTARTS={limit}" in out.stderr


def test_local_gives_up_without_progress(tmp_path: Path):
    out = local("2", "bash", "-c", "exit 7", "x", "--workdir", tmp_path, RESTARTS="9")
    assert out.returncode == 7 and out.stderr.count("starting again") == 2
    assert out.stderr.endswith("step: none; not started again: two starts in a row saved no newer step\n")
    out = local("2", "bash", "-c", "exit 7")
    assert out.returncode == 7 and out.stderr.count("start") == 1 and "has no --workdir" in out.stderr


@pytest.mark.parametrize("code", [2, 75, 130])
def test_local_starts_only_crashes_again(tmp_path: Path, code: int):
    out = local("2", "bash", "-c", f"exit {code}", "x", "--workdir", tmp_path)
    assert out.returncode == code and "crash" not in out.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_starts_nothing_after_a_signal(tmp_path: Path, number: signal.Signals):
    command = 'trap "echo told; exit 7" TERM; echo ready; for i in {1..500}; do sleep 0.1; done'
    # a shell in the background has its commands ignore SIGINT
    script = ["env", "--default-signal=INT", "bash", ROOT / "launch" / "local.sh"]
    with subprocess.Popen(
        [*script, "2", "bash", "-c", command, "x", "--workdir", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 7 and sorted(out.splitlines()) == ["[0] told", "[1] told"]


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the job with stand-ins; two tasks, which end with the codes `rc`."""
    for name, text in {
        "scontrol": 'echo "scontrol $*"',
        "squeue": "echo $STATE",
        "srun": """shift; most=0
            for i in 0 1; do SLURM_PROCID=$i "$@"; code=$?; ((code > most)) && most=$code; done
            exit $most""",
        ".venv/bin/ptft": """echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $*"
            codes=($RC); exit ${codes[JAX_PROCESS_ID]}""",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    env = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "12",
        "SLURM_NTASKS": "2",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }

    def job(*command: object, rc: str, state: str = "RUNNING", **more: str):
        return sh("bash", ROOT / "launch" / "slurm.sbatch", *command, RC=rc, STATE=state, **env, **more)

    return job


@pytest.mark.promise("R20")
@pytest.mark.parametrize(
    ("rc", "code"), [("75 75", 75), ("0 0", 0), ("2 2", 2), ("2 75", 2), ("75 7", 7), ("0 75", 75)]
)
def test_slurm_job_requeues_itself_when_preempted(tmp_path: Path, slurm, rc: str, code: int):
    out = slurm("train", "--config", "a b", rc=rc)
    assert out.returncode == code and "1 of 2: train --config a b\n" in out.stdout
    assert ("scontrol requeue 12" in out.stdout) == (code == 75)
    assert not list(tmp_path.glob("ptft-*"))


@pytest.mark.parametrize("rc", ["75 75", "7 7"])
def test_slurm_job_that_was_cancelled_stays_so(tmp_path: Path, slurm, rc: str):
    out = slurm("train", "--workdir", tmp_path, rc=rc, state="COMPLETING")
    assert "requeue 12" not in out.stdout and "job 12 is COMPLETING: cancelled, or already" in out.stdout


def test_slurm_job_requeues_itself_after_a_crash(tmp_path: Path, slurm):
    def crash() -> tuple[bool, str]:
        out = slurm("train", "--workdir", "run", rc="75 7")
        assert out.returncode == 7
        return "scontrol requeue 12" in out.stdout, out.stderr

    assert crash() == (
        True,
        "crashed with exit code 7, newest saved step: none; starting again, 1 of at most 3\n",
    )
    saved(tmp_path / "run", 4)
    assert crash()[0]
    assert "requeue" in slurm("train", "--workdir", "run", rc="75 75").stdout  # this start does not count
    assert crash()[0]
    again, said = crash()
    assert not again and said.endswith("newest saved step: 4; not started again: RESTARTS=3\n")
    assert crash()[0]  # a person submits it anew


def test_k8s_job_is_whole():
    """Kubernetes refuses no key that it does not know, so each is one of these; the parts agree."""
    service, job = yaml.safe_load_all((ROOT / "launch" / "k8s_job.yaml").read_text())
    name, spec, pod = job["metadata"]["name"], job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job") and set(spec["template"]) == {"spec"}
    assert service["spec"] == {
        "clusterIP": "None", "selector": {"job-name": name}, "publishNotReadyAddresses": True
    }  # fmt: skip
    assert spec.keys() == {
        "completionMode", "completions", "parallelism", "backoffLimit", "podFailurePolicy", "template"
    }  # fmt: skip
    assert pod.keys() == {
        "subdomain", "restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"
    }  # fmt: skip
    assert container.keys() == {"name", "image", "command", "args", "env", "resources", "volumeMounts"}

    env = {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}
    subdomain = pod["subdomain"]
    assert env == {
        "JAX_COORDINATOR_ADDRESS": f"{name}-0.{subdomain}:8476",
        "JAX_NUM_PROCESSES": str(spec["completions"]),
        "JAX_PROCESS_ID": {
            "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        },
    }
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]
    assert pod["restartPolicy"] == "Never" and subdomain == service["metadata"]["name"]
    assert [m["name"] for m in container["volumeMounts"]] == [v["name"] for v in pod["volumes"]]
    assert container["args"][-1].startswith(container["volumeMounts"][0]["mountPath"])
    assert container["command"] == ["ptft"] and parser().parse_known_args(container["args"])[1] == []


def test_k8s_job_knows_the_exit_codes():
    _, job = yaml.safe_load_all((ROOT / "launch" / "k8s_job.yaml").read_text())
    spec = job["spec"]
    *by_code, disrupted = spec["podFailurePolicy"]["rules"]
    assert disrupted == {
        "action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]
    }  # fmt: skip
    assert by_code == [
        {"action": action, "onExitCodes": {"operator": "In", "values": [code]}}
        for action, code in (("FailJob", 2), ("Ignore", 75))
    ]
    assert spec["backoffLimit"] == 3 * spec["completions"]  # as often as RESTARTS says, a crash of all each
