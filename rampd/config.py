"""An event's config, read and resolved: `load_config` reports every problem of a file at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from rampd.config_problems import Problems, masked, shown
from rampd.config_sections import DispatcherSection, RampSection, Section, WorkerConfig
from rampd.errors import RampdError
from rampd.states import HungerPolicy
from rampd.yaml_document import read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rampd.board_config import BoardSettings

_FOLDERS = ("submissions_dir", "predictions_dir", "logs_dir")
_LEGACY = {
    "hooks": "nothing; what an instance needs belongs into its image",
    "check_status_interval_secs": "dispatcher.time_between_collection",
    "check_finished_training_interval_secs": "dispatcher.time_between_collection",
    "train_loop_interval_secs": "dispatcher.time_between_collection",
}
_FOREIGN_SECTIONS = {
    "sqlalchemy": "it belongs in the deployment's own config.yml (--database-config)",
    "flask": "it belongs to ramp-frontend",
}

S = TypeVar("S", bound=Section)


class UnknownWorkerTypeError(RampdError):
    """`worker_type` names nothing that is installed; the message says what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class RampSettings:
    """The `ramp` section, with every path absolute."""

    problem_name: str
    event_name: str
    event_title: str
    event_is_public: bool
    kit_dir: Path
    data_dir: Path
    submissions_dir: Path
    predictions_dir: Path
    logs_dir: Path
    sandbox_dir: str


@dataclass(frozen=True, slots=True)
class DispatcherSettings:
    """The `dispatcher` section, resolved."""

    hunger_policy: HungerPolicy
    n_workers: int
    n_threads: int | None
    time_between_collection: float
    shutdown_grace: float
    state_dir: Path
    settle_time: float
    hold_timeout: float | None


@dataclass(frozen=True, slots=True)
class Settings:
    """One event's config, valid and resolved."""

    path: Path
    deployment_dir: Path
    ramp: RampSettings
    dispatcher: DispatcherSettings
    worker: WorkerConfig
    warnings: tuple[str, ...] = ()
    board: BoardSettings | None = None
    """The RAMP board whose database is the store (--database-config); None: the embedded store."""

    def masked(self) -> dict[str, Any]:
        """Return the settings for people to see: secrets and environment values are hidden."""
        worker = self.worker.model_dump(mode="json", exclude=set(self.worker.model_extra or ()))
        worker |= {name: masked(name, value) for name, value in (self.worker.model_extra or {}).items()}
        worker["env"] = {name: None if text is None else "**********" for name, text in self.worker.env.items()}
        for name in _FOLDERS:
            del worker[name]
        return {
            "path": str(self.path),
            "deployment_dir": str(self.deployment_dir),
            "ramp": {name: _shown(getattr(self.ramp, name)) for name in RampSettings.__slots__},
            "dispatcher": {name: _shown(getattr(self.dispatcher, name)) for name in DispatcherSettings.__slots__},
            "worker": worker,
            **({"board": self.board.masked()} if self.board is not None else {}),
        }


def _shown(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def load_config(
    path: Path,
    *,
    worker_models: Callable[[str], type[WorkerConfig]],
    deployment_dir: Path | None = None,
) -> Settings:
    """Read and resolve one event's config.

    Parameters
    ----------
    path
        The YAML file.
    worker_models
        Gives the model of the `worker` section for a worker_type; raises UnknownWorkerTypeError.
    deployment_dir
        What relative paths are relative to; None: the folder that holds `events/` where the file is
        `events/<event>/config.yml`, else the file's own folder.

    Raises
    ------
    ConfigError
        With every problem of the file, in its order.
    """
    document = read_yaml(path)
    problems = Problems(path, document)
    root = (deployment_dir or _deployment_of(path)).expanduser().absolute()
    if not isinstance(document.data, dict):
        problems.add(
            (), "is empty" if document.data is None else "is no mapping", "the sections ramp, worker, dispatcher"
        )
        raise problems.error()
    data = dict(document.data)
    model = _worker_model(problems, data.get("worker"), worker_models)
    warnings = _drop_legacy(data, ("dispatcher",) if _allows_any_key(model) else ("dispatcher", "worker"))
    problems.check_keys((), data, ("ramp", "dispatcher", "worker"))
    ramp = _section(problems, "ramp", RampSection, data.get("ramp"), needed="problem_name and event_name")
    dispatcher = _section(problems, "dispatcher", DispatcherSection, data.get("dispatcher", {}))
    worker = None
    if model is not None:
        worker = _section(problems, "worker", model, data.get("worker"), needed="worker_type")
    folders = _folders(problems, data)
    n_workers = _n_workers_of_worker(data, worker, warnings)
    if problems or ramp is None or dispatcher is None or worker is None:
        raise problems.error()
    ramp_settings = _resolve_ramp(ramp, root, folders)
    dispatcher_settings = _resolve_dispatcher(dispatcher, root, ramp.event_name, n_workers=n_workers)
    _check_apart(problems, ramp_settings, dispatcher_settings)
    if problems:
        raise problems.error()
    return Settings(
        path=path.absolute(),
        deployment_dir=root,
        ramp=ramp_settings,
        dispatcher=dispatcher_settings,
        worker=worker,
        warnings=(*warnings, *worker.advice(dispatcher)),
    )


def _deployment_of(path: Path) -> Path:
    folder = path.absolute().parent
    return folder.parent.parent if folder.parent.name == "events" else folder


def _drop_legacy(data: dict[Any, Any], sections: Sequence[str]) -> list[str]:
    """Take out what older dispatchers knew and this one does not need; return a warning each."""
    warnings = []
    for section in sections:
        found = data.get(section)
        if isinstance(found, dict):
            data[section] = {key: value for key, value in found.items() if key not in _LEGACY}
            warnings += [
                f"{section}.{key} is ignored; it is replaced by {_LEGACY[key]}" for key in found if key in _LEGACY
            ]
    for section, why in _FOREIGN_SECTIONS.items():
        if data.pop(section, None) is not None:
            warnings.append(f"the section {section} is ignored: {why}")
    return warnings


def _section(problems: Problems, name: str, model: type[S], data: object, *, needed: str = "") -> S | None:
    if data is None and not needed:
        data = {}
    if not isinstance(data, dict):
        what = "is missing" if data is None else f"found {shown(data)}"
        problems.add((name,), what, f"a section with {needed or ', '.join(model.model_fields)}")
        return None
    allowed = data
    if not _allows_any_key(model):
        problems.check_keys((name,), data, tuple(model.model_fields))
        allowed = {key: value for key, value in data.items() if key in model.model_fields}
    try:
        return model.model_validate(allowed)
    except ValidationError as error:
        problems.add_validation((name,), error, data)
        return None
    except Exception as error:  # noqa: BLE001 -- a plug-in's own validators may raise anything; one event's mistake
        # Not what it says: that may be a secret's value.
        what = f"cannot be looked at: {model.__module__}.{model.__name__} raised {type(error).__name__}"
        problems.add((name,), what, "values that its validators accept, or refuse by a ValueError")
        return None


def _allows_any_key(model: type[Section] | None) -> bool:
    """Say whether a section has keys that only its plug-in knows."""
    return model is not None and model.model_config.get("extra") == "allow"


def _worker_model(
    problems: Problems, data: object, worker_models: Callable[[str], type[WorkerConfig]]
) -> type[WorkerConfig] | None:
    """Return the model that `worker_type` names; without one, or an unknown one, that is a problem."""
    if not isinstance(data, dict):
        return WorkerConfig  # whose validation says what is wrong with the section
    worker_type = data.get("worker_type")
    if not isinstance(worker_type, str) or not worker_type:
        what = "is missing" if worker_type is None else f"found {shown(worker_type)}"
        problems.add(("worker", "worker_type"), what, "the name of a worker, such as conda")
        return None
    try:
        return worker_models(worker_type)
    except UnknownWorkerTypeError as error:
        problems.add(("worker", "worker_type"), str(error))
        # What every worker has is looked at all the same; other keys may be those of the worker that was meant.
        common = {key: value for key, value in data.items() if key in WorkerConfig.model_fields}
        _section(problems, "worker", WorkerConfig, common, needed="worker_type")
        return None


def _folders(problems: Problems, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `worker` says of the event's folders; a value that contradicts `ramp` is a problem."""
    ramp, worker = data.get("ramp"), data.get("worker")
    if not (isinstance(ramp, dict) and isinstance(worker, dict)):
        return {}
    for name in _FOLDERS:
        here, there = ramp.get(name), worker.get(name)
        if here is not None and there is not None and str(here) != str(there):
            problems.add(("worker", name), f"found {str(there)!r}, but ramp.{name} is {str(here)!r}", "one of them")
    return {name: worker[name] for name in _FOLDERS if worker.get(name) is not None}


def _n_workers_of_worker(data: Mapping[str, Any], worker: WorkerConfig | None, warnings: list[str]) -> int | None:
    """Return the n_workers of a worker that has one, where the dispatcher's does not stand."""
    found = getattr(worker, "n_workers", None)
    if not isinstance(found, int):
        return None
    if "n_workers" not in (data.get("dispatcher") or {}):
        return found
    warnings.append("worker.n_workers is ignored: dispatcher.n_workers stands as well, and counts")
    return None


def _resolve_ramp(ramp: RampSection, root: Path, folders: Mapping[str, Any]) -> RampSettings:
    event = Path("events") / ramp.event_name

    def at(given: Path | None, default: Path) -> Path:
        return Path(os.path.normpath(root / (given or default).expanduser()))

    def folder(name: str) -> Path:
        given = getattr(ramp, name) or folders.get(name)
        return at(Path(given) if given else None, event / name.removesuffix("_dir"))

    return RampSettings(
        problem_name=ramp.problem_name,
        event_name=ramp.event_name,
        event_title=ramp.event_title or ramp.event_name,
        event_is_public=ramp.event_is_public,
        kit_dir=at(ramp.kit_dir, Path("ramp-kits") / ramp.problem_name),
        data_dir=at(ramp.data_dir, Path("ramp-data") / ramp.problem_name),
        submissions_dir=folder("submissions_dir"),
        predictions_dir=folder("predictions_dir"),
        logs_dir=folder("logs_dir"),
        sandbox_dir=ramp.sandbox_dir,
    )


def _check_apart(problems: Problems, ramp: RampSettings, dispatcher: DispatcherSettings) -> None:
    """Refuse folders of an event that are one, or lie in one another.

    What is put into three of them, and taken out again, has the names of submissions: in a folder that holds the others
    a submission named `submissions`, say, would have them swapped away.
    """
    folders = {("ramp", name): getattr(ramp, name) for name in _FOLDERS}
    folders["dispatcher", "state_dir"] = dispatcher.state_dir
    for (where, path), (other, outer) in permutations(folders.items(), 2):
        is_same = path == outer and list(folders).index(where) > list(folders).index(other)
        if is_same or (path != outer and other[0] == "ramp" and path.is_relative_to(outer)):
            word = "is" if is_same else "lies in"
            problems.add(
                where, f"found {str(path)!r}, which {word} {'.'.join(other)}", "a folder apart from the others"
            )


def _resolve_dispatcher(
    section: DispatcherSection, root: Path, event_name: str, *, n_workers: int | None
) -> DispatcherSettings:
    cores = len(os.sched_getaffinity(0))
    asked = n_workers if n_workers is not None else section.n_workers
    state_dir = section.state_dir or Path("events") / event_name / "state"
    return DispatcherSettings(
        hunger_policy=section.hunger_policy or HungerPolicy.SLEEP,
        n_workers=asked if asked > 0 else max(1, cores + 1 + asked),
        n_threads=section.n_threads,
        time_between_collection=section.time_between_collection,
        shutdown_grace=section.shutdown_grace,
        state_dir=Path(os.path.normpath(root / state_dir)),
        settle_time=section.settle_time,
        hold_timeout=section.hold_timeout,
    )


__all__ = [
    "DispatcherSection",
    "RampSection",
    "Section",
    "Settings",
    "UnknownWorkerTypeError",
    "WorkerConfig",
    "load_config",
]
