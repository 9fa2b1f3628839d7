"""Compiled programs are kept between processes, whatever happens to the folder; and a start loads what it
needs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from ptft.cli.main import VERBS, main
from ptft.core import cache, compiled, startup
from ptft.core.compiled import LIMIT, Folder, chosen
from ptft.core.errors import UserError

ROOT = Path(__file__).parents[1]
PLAIN = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k and "PERSISTENT_CACHE" not in k}


def child(code: str, **env: str) -> str:
    """What a new process prints, in which nothing is said to jax of its cache."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**PLAIN, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def age(folder: Path, *keys: str) -> None:
    """The first was used the longest ago."""
    for i, key in enumerate(keys):
        os.utime(folder / f"{key}-cache", (1000 + i, 1000 + i))


def test_what_is_kept_is_found_by_another(tmp_path):
    Folder(tmp_path / "new" / "folder", None).put("a", b"one")
    other = Folder(tmp_path / "new" / "folder", None)
    assert other.get("a") == b"one" and other.get("b") is None
    other.put("a", b"two")  # half an entry is not what stays
    assert other.get("a") == b"two" and os.listdir(tmp_path / "new" / "folder") == ["a-cache"]


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    folder = Folder(tmp_path, 100)
    for key in "abc":
        folder.put(key, bytes(30))
    (tmp_path / "d-cache.123.tmp").write_bytes(bytes(10))  # of a process that was killed
    age(tmp_path, "a", "b", "c")
    os.utime(tmp_path / "d-cache.123.tmp", (1, 1))
    assert folder.get("a")
    folder.put("e", bytes(30))
    assert sorted(os.listdir(tmp_path)) == ["a-cache", "c-cache", "e-cache"]
    folder.put("f", bytes(101))
    assert folder.get("f") is None


@pytest.mark.parametrize("full", [False, True], ids=["no folder can be made", "no file can be written"])
def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, capsys, monkeypatch, full):
    (tmp_path / "file").touch()
    folder = Folder(tmp_path if full else tmp_path / "file" / "compiled", 100)
    if full:
        monkeypatch.setattr(
            Path,
            "write_bytes",
            lambda self, value: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
    folder.put("a", b"one")
    folder.put("b", b"two")
    assert folder.get("a") is None
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and f"WARNING: compiled programs are not kept in {folder.path}: No" in said
        and "PTFT_CACHE=DIR" in said
    )


PROGRAM = """
import os, warnings
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from ptft.core import compiled
from ptft.train import cost

def go():
    jax.clear_caches()
    compiled.start()
    jitted = jax.jit(lambda x, y: (jnp.tanh(x @ y), y + 1), donate_argnums=1)
    made = jitted.lower(*[np.ones((64, 64), np.float32)] * 2).compile()
    found = made(np.ones((64, 64), np.float32), jnp.full((64, 64), 0.01))
    total = float(found[0].sum())
    print(compiled.seen.programs, compiled.seen.read, cost.of(made), total, sep="; ")

os.umask(0)
warnings.simplefilter("error")
go()
go()
files = list(Path(os.environ["PTFT_CACHE"], "compiled").iterdir())
for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
go()
go()
print(len(files), oct(files[0].parent.stat().st_mode)[-3:], compiled.seen)
"""


def test_a_program_from_the_cache_is_the_same_and_half_of_one_is_compiled_again(tmp_path):
    *lines, last = child(PROGRAM, PTFT_CACHE=str(tmp_path)).splitlines()
    n, *first = lines[0].split("; ")
    assert [line.split("; ")[1] for line in lines] == ["0", n, "0", n]
    # FLOPs, bytes, what it computes
    assert {tuple(line.split("; ")[2:]) for line in lines} == {tuple(first[1:])}
    assert "flops=" in lines[0] and last == f"{n} 700 {n} from the cache, 0 compiled"


@pytest.mark.parametrize(
    "env, path, limit",
    [
        ({}, "user/compiled", LIMIT),
        ({"SIZE": "5000"}, "user/compiled", 5000),
        ({"DIR": "/named"}, "/named", None),  # others may keep theirs there: nothing is removed
        ({"DIR": "/named", "SIZE": "5000"}, None, None),
        ({"DIR": "gs://bucket/folder"}, None, None),
        ({"DIR": ""}, None, None),
    ],
)
def test_what_the_environment_says_of_the_cache_holds(monkeypatch, env, path, limit):
    for name in ("DIR", "MAX_SIZE"):
        monkeypatch.delenv(f"JAX_COMPILATION_CACHE_{name}", raising=False)
    monkeypatch.setenv("PTFT_CACHE", "user")
    for name, value in env.items():
        monkeypatch.setenv(
            {"DIR": "JAX_COMPILATION_CACHE_DIR", "SIZE": "JAX_COMPILATION_CACHE_MAX_SIZE"}[name], value
        )
    folder = chosen()
    assert folder is None if path is None else (str(folder.path), folder._limit) == (path, limit)


def test_a_user_without_a_home_is_one_warning(monkeypatch, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for name in ("HOME", "PTFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 3)  # a number that no user has
    said = "~/.cache/ptft: this user has no home folder; PTFT_CACHE=DIR names another folder for the cache"
    with pytest.raises(UserError, match=re.escape(said)):
        cache.folder()
    assert chosen() is None
    assert capsys.readouterr().err == f"WARNING: compiled programs are not kept: {said}\n"


LOADED = """
import sys
from ptft.__main__ import main
for argv in {argvs}:
    try:
        main(argv)
    except SystemExit:
        pass
heavy = {{"jax", "scipy", "scipy.stats", "matplotlib", "optuna", "tensorflow_datasets"}}
print("loaded", *sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "argvs, loaded",
    [
        ([["--help"], ["train", "--help"]], []),
        ([["status", "nowhere"], ["status", "configs"]], []),
        ([["report", "nowhere"], ["train", "--config", "nowhere.py", "--workdir", "nowhere"]], ["jax"]),
    ],
    ids=["help", "status", "mistakes"],
)
def test_a_start_loads_no_more_than_it_needs(argvs, loaded):
    assert child(LOADED.format(argvs=argvs)).splitlines()[-1].split() == ["loaded", *loaded]


def test_what_the_time_to_the_first_step_went_to_is_said_once(capsys, monkeypatch):
    clock = iter([10.0, 13.0, 15.5, 30.0, 100.0, 101.0])
    monkeypatch.setattr(startup, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(startup, "_process", 9.0)
    monkeypatch.setattr(startup, "_begun", None)
    monkeypatch.setattr(compiled, "seen", seen := compiled.Seen())
    startup.stepped(())  # not of a command
    startup.imported()
    with startup.timed("data"):
        pass
    monkeypatch.setattr(compiled, "time", SimpleNamespace(perf_counter=lambda: 25.0))
    # each holds the one before
    for event, seconds in (("jaxpr_trace", 1.0), ("jaxpr_trace", 3.0), ("backend_compile", 4.0)):
        seen._duration(f"/jax/core/compile/{event}_duration", seconds)
    startup.stepped(())
    startup.stepped(())
    startup.imported()  # a second command of the process
    startup.stepped(())
    first, second = capsys.readouterr().out.splitlines()
    parts = (
        "1.0 s imports, 2.5 s data, 4.0 s tracing and compiling (0 from the cache, 1 compiled in 4.0 s), "
        "13.5 s the rest"
    )
    assert first == f"first step after 21.0 s: {parts}"
    assert second.startswith("first step after 1.0 s: 0.0 s imports, 4.0 s tracing")


def test_a_command_says_what_it_compiled_beside_its_output(monkeypatch, capsys):
    def verb(args, overrides):
        print(float(jax.jit(lambda x: x + 3)(1.0)))

    monkeypatch.setitem(VERBS, "plan", (verb, *VERBS["plan"][1:]))
    assert main(["plan", "--config", "page.py"]) == 0
    said = capsys.readouterr()
    assert said.out == "4.0\n" and re.fullmatch(
        r"compiled programs: \d from the cache, \d compiled( in [\d.]+ s)?\n", said.err
    )
