"""Checkpoints are written beside the loop: in order, one step at a time, and no error is lost."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptft.core import saver
from ptft.core.errors import UserError


def fails():
    raise UserError("the disk is full")


def once(go, order, what):
    """A write that waits until it may go."""

    def write():
        assert go.wait(60)
        order.append(what)

    return write


def test_a_step_waits_for_the_one_before_and_not_for_itself(capsys, monkeypatch):
    monkeypatch.setattr(saver, "LONG", 0.0)
    order, go = [], threading.Event()
    with saver.saving() as saves:
        saves.ready(1)
        saves.start("best", once(go, order, "best 1"))
        saves.ready(1)
        saves.start("checkpoints", lambda: order.append("step 1"))
        assert order == [] and saves.saved() == []
        threading.Timer(0.1, go.set).start()
        saves.ready(2)
        assert order == ["best 1", "step 1"]
        assert [(s.kind, s.step) for s in saves.saved()] == [("best", 1), ("checkpoints", 1)]
        saves.start("checkpoints", lambda: order.append("step 2"))
    assert order[2:] == ["step 2"] and [s.step for s in saves.saved()] == [2]
    assert "until step 1 was on disk, to save step 2" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["ready", "check", "wait"])
def test_an_error_is_raised_once_and_ends_the_step(asked):
    written = []
    saves = saver.Saver()
    saves.ready(1)
    saves.start("best", fails)
    saves.start("checkpoints", lambda: written.append(1))
    saves._thread.join()
    with pytest.raises(UserError, match="the disk is full"):
        getattr(saves, asked)(*((2,) if asked == "ready" else ()))
    saves.wait()
    assert written == [] and saves.saved() == []


def test_another_error_does_not_hide_that_of_a_save_nor_cut_it_off(capsys):
    written, go = [], threading.Event()
    with pytest.raises(ZeroDivisionError), saver.saving() as saves:
        saves.ready(1)
        saves.start("best", once(go, written, 1))
        saves.start("checkpoints", fails)
        go.set()
        raise ZeroDivisionError
    assert written == [1] and "not saved, either: the disk is full" in capsys.readouterr().err
    with pytest.raises(UserError, match="the disk is full"), saver.saving() as saves:
        saves.ready(1)
        saves.start("best", fails)


def test_what_is_copied_is_no_view_of_what_a_step_overwrites():
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = step(jnp.zeros(2**16))
    own = saver.Saver().own({"a": x})
    step(x).block_until_ready()  # takes the memory, or from jax 0.11 on, once it was read, copies it
    assert isinstance(own["a"], np.ndarray) and own["a"].flags.owndata
    assert set(own["a"].tolist()) == {1.0}


def test_a_copy_is_of_its_step_and_is_written_over_only_once_that_is_on_disk():
    go, written = threading.Event(), []
    with saver.saving() as saves:
        saves.ready(1)
        own = saves.own({"a": jnp.full(8, 1.0)})
        assert saves.own({"a": jnp.full(8, 1.0)}) is own  # the best and the step to resume from
        saves.start("best", once(go, written, 1))
        saves.start("checkpoints", lambda: written.append(own["a"].tolist()))
        threading.Timer(0.1, go.set).start()
        saves.ready(2)
        again = saves.own({"a": jnp.full(8, 2.0)})
        assert again["a"] is own["a"] and again["a"].tolist() == [2.0] * 8
        saves.ready(3)  # another phase: other parameters
        assert saves.own({"b": jnp.full(4, 3.0)})["b"].tolist() == [3.0] * 4
    assert written == [1, [1.0] * 8]
