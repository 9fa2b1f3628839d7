"""Optuna's study of a search: opened, taken up again after a stop, and which of its trials count."""

import importlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptft.core.errors import UserError, install

STARTUP = 4  # trials that are finished before the first is pruned
STUDY = "tune"


def load_optuna() -> Any:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError:
        raise UserError(f"optuna is not installed; {install('tune')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def opened(optuna: Any, workdir: Path, falls: bool) -> Any:
    storage = optuna.storages.RDBStorage(f"sqlite:///{workdir.absolute()}/tune.db")
    direction = "minimize" if falls else "maximize"
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
    try:
        yield optuna.create_study(
            storage=storage, study_name=STUDY, direction=direction, pruner=pruner, load_if_exists=True
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def done(study: Any) -> list[Any]:
    """Trials that count: finished or pruned, and not those that a stop cut short."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]


def retry(optuna: Any, study: Any) -> None:
    """What a stop cut short has failed; as it does not count, the same values are proposed once more."""
    for t in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(t.number, state=optuna.trial.TrialState.FAIL)


def winner(study: Any) -> Any:
    return study.best_trial if any(t.state.name == "COMPLETE" for t in done(study)) else None
