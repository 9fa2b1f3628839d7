"""Checkpoints: Orbax for the bytes, an own manifest for trust (`ptft.core.integrity`).

    WORKDIR/checkpoints/<step>/   params, opt, meta: to resume from; the newest few stay
    WORKDIR/best/<step>/          params, meta: the best on the dev split; one stays
    WORKDIR/manifests/<kind>-<step>.json   size and SHA-256 of every file of a step

Saving here is synchronous: when `save` returns, the step is on disk, and an error is raised where it
happened; `ptft.core.saver` runs it beside the loop.
With several processes all must call `save`, `restore` and `load_params`, on a shared file system.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax

from ptft.core import integrity, mesh, record
from ptft.core.errors import UserError, table
from ptft.core.integrity import BEST, RESUME
from ptft.core.tree import Flat, diff, flatten, unflatten

# Orbax logs every failure with several tracebacks from its threads, and then raises it as well.
absl.logging.get_absl_logger().addFilter(lambda entry: "orbax" not in entry.pathname)


def save(workdir: Path, step: int, params: Flat, opt: Any, meta: Mapping[str, Any], *, keep: int = 2) -> None:
    """Saves a step to resume from, then removes all but the newest `keep`.

    Steps after `step` go too: they were written before the run fell back and are being trained again.

    Args:
      workdir: the run's folder.
      step: the number of steps done; saving a step again replaces it.
      params: `{"a/b/c": array}`.
      opt: any pytree of arrays (an optax state); a typed PRNG key does not come back, keep its `key_data`.
      meta: anything JSON can hold.
      keep: how many steps stay, at least 1.
    Raises:
      UserError: the disk is full, or would be. Earlier steps are intact.
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt)
    # Orbax splits and rejects some names, so the optimizer's leaves are stored by number and their paths in
    # meta.
    numbered = {f"{i:05d}": leaf for i, (_, leaf) in enumerate(leaves)}
    _write(
        workdir,
        RESUME,
        step,
        params,
        numbered,
        {"step": step, "meta": meta, "opt": [_opt_name(path) for path, _ in leaves]},
    )
    if record.is_lead():
        trusted = [
            s
            for s in integrity.steps(workdir, RESUME)
            if s <= step and integrity.manifest_file(workdir, RESUME, s).exists()
        ]
        integrity.remove(workdir, RESUME, set(integrity.steps(workdir, RESUME)) - set(trusted[:keep]))
    mesh.wait("ptft.save")


def save_best(workdir: Path, step: int, params: Flat, meta: Mapping[str, Any]) -> None:
    """Saves the best parameters so far; the previous best is removed once the new one is complete. Raises as
    `save`."""
    _write(workdir, BEST, step, params, {}, {"step": step, "meta": meta, "opt": []})
    if record.is_lead():
        integrity.remove(workdir, BEST, set(integrity.steps(workdir, BEST)) - {step})
    mesh.wait("ptft.save_best")


def newest(workdir: Path) -> int | None:
    """The newest step to resume from whose every file is intact, or None. Each damaged step is reported and
    skipped."""
    return integrity.newest(workdir, RESUME)


def restore(workdir: Path, step: int, params_like: Flat, opt_like: Any) -> tuple[Flat, Any]:
    """The parameters and the optimizer state of a step, bit for bit, placed as the `like` leaves are.

    Args:
      workdir: the run's folder.
      step: a step that `newest` gave.
      params_like: `{"a/b/c": array or ShapeDtypeStruct}`; the device layout may differ from the one that
        saved. A leaf without a sharding goes to the first device.
      opt_like: the same for the optimizer state, as `tx.init` returns it.
    Raises:
      UserError: the step is damaged, or holds other names, shapes or dtypes.
    """
    integrity.trust(workdir, RESUME, step)
    folder = integrity.step_folder(workdir, RESUME, step)
    named = jax.tree_util.tree_leaves_with_path(opt_like)
    paths = json.loads((folder / "meta" / "metadata").read_text())["opt"]
    have = {"params": _stored(folder, "params"), "opt": _stored(folder, "opt") if paths else {}}
    have_opt = {path: have["opt"][f"{i:05d}"] for i, path in enumerate(paths)}
    want_params = {name: _abstract(leaf) for name, leaf in params_like.items()}
    want_opt = {_opt_name(path): _abstract(leaf) for path, leaf in named}
    rows = _clashes(have["params"], want_params) + _clashes(have_opt, want_opt)
    if rows:
        raise UserError(f"the checkpoint {folder} does not fit this model and optimizer:\n{table(rows)}")
    params = _read(folder, "params", want_params)
    leaves = _read(folder, "opt", {f"{i:05d}": want_opt[path] for i, path in enumerate(paths)})
    by_path = dict(zip(paths, leaves.values(), strict=True))
    opt = jax.tree.unflatten(jax.tree.structure(opt_like), [by_path[_opt_name(path)] for path, _ in named])
    return {name: params[name] for name in params_like}, opt


def read_meta(workdir: Path, step: int | None = None, best: bool = False) -> dict[str, Any]:
    """The `meta` of a step (the newest intact one when None). Raises UserError when there is none."""
    kind = BEST if best else RESUME
    if step is None:
        step = integrity.newest(workdir, kind)
        if step is None:
            raise UserError(integrity.nothing(workdir))
    else:
        integrity.trust(workdir, kind, step)
    return _meta(integrity.step_folder(workdir, kind, step))


def known(workdir: Path) -> dict[str, Any]:
    """The `meta` of the step that a run stands for. Raises UserError as `stands_for`."""
    return _meta(integrity.step_folder(workdir, *stands_for(workdir)))


def _meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta" / "metadata").read_text())["meta"]


def stands_for(workdir: Path, best: bool = True) -> tuple[str, int]:
    """The step that a run stands for: (`BEST`, the best) if it has one, else (or when not `best`) (`RESUME`,
    the newest).

    Raises:
      UserError: no intact step, or a best one that is damaged: the last is no stand-in for it.
    """
    if best and (steps := integrity.steps(workdir, BEST)):
        # of one, the error says what is wrong
        if (step := integrity.newest(workdir, BEST, quiet=len(steps) == 1)) is not None:
            return BEST, step
        raise UserError(
            f"the best step of {workdir} is damaged: {integrity.damages(workdir, BEST)}; restore "
            f"{Path(workdir) / BEST}, or remove that folder to take the last step instead"
        )
    if (step := newest(workdir)) is None:
        raise UserError(integrity.nothing(workdir))
    return RESUME, step


class Loaded(NamedTuple):
    """What `load_params` did: names taken, names the caller must initialise, names left in the checkpoint."""

    loaded: list[str]
    new: list[str]
    unused: list[str]
    step: int = 0
    meta: Mapping[str, Any] = {}  # what was saved with them


def load_params(
    workdir: Path, want: Flat | None, *, skip: str = "head/.*", new_ok: str = "head/.*", best: bool = True
) -> tuple[Flat, Loaded]:
    """Parameters of another run, by name; every name on both sides is accounted for.

    Args:
      workdir: the folder of the run to take from.
      want: `{"a/b/c": ShapeDtypeStruct}` of the model to fill; its dtypes and shardings hold. None: all that
        is stored.
      skip: a pattern (full match) of names that are never taken.
      new_ok: a pattern (full match) of names that may be absent from the checkpoint.
      best: as in `stands_for`.
    Returns:
      (the taken leaves only, what was taken, new and unused)
    Raises:
      UserError: no intact step; a shape that differs or a name that is missing and may not be (with a table).
    """
    kind, step = stands_for(workdir, best)
    folder = integrity.step_folder(workdir, kind, step)
    have = _stored(folder, "params")
    want = (
        want
        if want is not None
        else {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in have.items()}
    )
    _, what = choose(have, want, f"the checkpoint {folder}", skip=skip, new_ok=new_ok)
    params = _read(folder, "params", {name: _abstract(want[name]) for name in what.loaded})
    return {name: params[name] for name in what.loaded}, what._replace(step=step, meta=_meta(folder))


def choose(have: Flat, want: Flat, where: str, *, skip: str, new_ok: str) -> tuple[Flat, Loaded]:
    """What a model takes of the arrays (or shapes) of another, as `load_params` does; `where` is for the
    message."""
    offered = {name: leaf for name, leaf in have.items() if not re.fullmatch(skip, name)}
    comparison = diff(offered, want)
    rows = [(name, _shape(offered[name]), _shape(want[name])) for name, _, _ in comparison.shape]
    rows += [
        (name, "missing", _shape(want[name])) for name in comparison.missing if not re.fullmatch(new_ok, name)
    ]
    if rows:
        raise UserError(
            f"{where} is of another model:\n{table(rows)}\nuse the configuration that it was trained with"
        )
    unused = [name for name in have if name not in comparison.same]
    return {name: have[name] for name in comparison.same}, Loaded(comparison.same, comparison.missing, unused)


def _write(workdir: Path, kind: str, step: int, params: Flat, opt: Flat, meta: Mapping[str, Any]) -> None:
    json.dumps(meta)  # a value that JSON cannot hold is found before anything is touched
    folder = integrity.step_folder(workdir, kind, step)
    need = 1.2 * sum(leaf.nbytes for leaf in (*params.values(), *opt.values())) + 2**20
    if record.is_lead():
        folder.parent.mkdir(parents=True, exist_ok=True)
        integrity.clear_tmp(workdir)
    free = shutil.disk_usage(folder.parent if folder.parent.exists() else ".").free
    if free < need:
        raise UserError(
            f"not enough disk space to save step {step} in {folder.parent}: needs {need / 2**20:,.1f} MiB, "
            f"{free / 2**20:,.1f} MiB are free; earlier steps are intact; "
            "free some space (or keep fewer steps) and run the same command again"
        )
    import orbax.checkpoint as ocp  # here, as it takes half a second, and much needs no checkpoint

    items: dict[str, Any] = {
        "params": ocp.args.PyTreeSave(unflatten(params)),
        "meta": ocp.args.JsonSave(dict(meta)),
    }
    if opt:  # Orbax refuses an empty item
        items["opt"] = ocp.args.PyTreeSave(opt)
    # so that an earlier save of the same step stays until this one is complete
    new = folder.with_name(f"{step}.new")
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
            orbax.save(new, args=ocp.args.Composite(**items))
        if record.is_lead():
            manifest = integrity.make_manifest(step, new)
            integrity.remove(workdir, kind, {step})
            new.rename(folder)
            record.write_json(integrity.manifest_file(workdir, kind, step), manifest)
    except Exception as e:
        if record.is_lead():
            integrity.clear_tmp(workdir)
        if isinstance(e, OSError) or "os_error_code" in str(e):  # tensorstore's ValueError of a failed write
            raise UserError(
                f"could not write step {step} to {folder.parent}: {e}\nearlier steps are intact"
            ) from e
        raise


def _opt_name(path: tuple[Any, ...]) -> str:
    return "opt" + jax.tree_util.keystr(path)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _stored(folder: Path, item: str) -> Flat:
    """`{name: shape and dtype}` of what an item holds."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
        return flatten(orbax.metadata(folder / item).item_metadata.tree)


def _read(folder: Path, item: str, want: Flat) -> Flat:
    """Reads the leaves named in `want`, all of which must be stored."""
    if not want:
        return {}
    import orbax.checkpoint as ocp

    like = unflatten(want)
    args = ocp.args.PyTreeRestore(
        item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
        got = flatten(orbax.restore(folder / item, args=args))
    # A partial restore hands back the placeholder of a leaf that the checkpoint does not hold.
    absent = [name for name in want if not isinstance(got.get(name), jax.Array)]
    assert not absent, f"Orbax restored no array for {absent}"
    return {name: got[name] for name in want}


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _clashes(have: Flat, want: Flat) -> list[tuple[str, str, str]]:
    """(name, have, want) for every difference in names, shapes and dtypes."""
    shown = [{name: _shape(leaf) for name, leaf in side.items()} for side in (have, want)]
    names = dict.fromkeys([*want, *have])
    return [
        (n, shown[0].get(n, "missing"), shown[1].get(n, "not wanted"))
        for n in names
        if shown[0].get(n) != shown[1].get(n)
    ]
