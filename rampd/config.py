"""An event's config: pydantic models with a docstring a field, and `load_config`, which reports all problems."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from rampd.config_problems import Problems, shown
from rampd.errors import ConfigError, RampdError
from rampd.states import HungerPolicy
from rampd.yaml_document import read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
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


class UnknownWorkerTypeError(RampdError):
    """`worker_type` names nothing that is installed; the message says what was found and what is allowed."""


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number")  # noqa: TRY004 -- pydantic collects ValueErrors
    if isinstance(value, str):
        raise ValueError("a number, without quotes")  # noqa: TRY004 -- as above
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a number of seconds")
    return value


def _text(value: object) -> object:
    # `event_name: 2026` is a number to YAML and a name to everybody else.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _one_line(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("a text that is not empty")
    return value


def _location(value: object) -> object:
    if isinstance(value, str):
        if not value.strip() or "\0" in value:
            raise ValueError("a path")
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise ValueError("a path; there is no such user's home") from None
    return value


def _size(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError('a size in bytes, or a text such as "64 MiB"')  # noqa: TRY004 -- as above
    return value


def _path_part(value: str) -> str:
    if not _PATH_PART.fullmatch(value):
        raise ValueError("a name of letters, digits, '_', '.' and '-' (it becomes a folder's name), at most 100")
    return value


Text = Annotated[str, BeforeValidator(_text), AfterValidator(_one_line)]
PathPart = Annotated[str, BeforeValidator(_text), AfterValidator(_path_part)]
Location = Annotated[Path, BeforeValidator(_location)]
Bytes = Annotated[ByteSize, BeforeValidator(_size)]
Whole = Annotated[int, BeforeValidator(_no_bool)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0), AfterValidator(_finite)]
SecondsOrZero = Annotated[float, BeforeValidator(_no_bool), Field(ge=0), AfterValidator(_finite)]


class Section(BaseModel):
    """Base of every part of a config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


S = TypeVar("S", bound=Section)


class RampSection(Section):
    """What the event is, and where its folders are. Relative paths are relative to the deployment's folder."""

    problem_name: PathPart
    """The problem's name: its kit is `ramp-kits/<problem_name>`."""
    event_name: PathPart
    """The event's name: its folders are below `events/<event_name>`."""
    event_title: Text | None = None
    """What people call the event; null: its name."""
    event_is_public: bool = True
    """Whether everybody may see the event; kept for ramp-frontend, rampd itself shows nothing to anybody."""
    kit_dir: Location | None = None
    """The kit, with its problem.py; null: `ramp-kits/<problem_name>`."""
    data_dir: Location | None = None
    """What holds the kit's `data` folder; null: `ramp-data/<problem_name>`."""
    submissions_dir: Location | None = None
    """Where participants' submissions arrive; null: `events/<event_name>/submissions`."""
    predictions_dir: Location | None = None
    """Where predictions are kept; null: `events/<event_name>/predictions`."""
    logs_dir: Location | None = None
    """Where logs are kept; null: `events/<event_name>/logs`."""
    sandbox_dir: PathPart = "starting_kit"
    """The submission that is never run."""


class DispatcherSection(Section):
    """How submissions are taken."""

    hunger_policy: HungerPolicy | None = HungerPolicy.SLEEP
    """What to do when nothing is waiting: sleep, or exit once everything is done; null: sleep."""
    n_workers: Whole = -1
    """How many submissions run at once; negative counts from the number of cores: -1 is all, -2 all but one."""
    n_threads: Annotated[Whole, Field(ge=1)] | None = None
    """How many threads a submission's numerical libraries may use; null: as many as they like."""
    time_between_collection: Seconds = 1.0
    """Seconds between two looks at a remote run."""
    shutdown_grace: SecondsOrZero = 30.0
    """Seconds that running submissions get when the daemon is stopped."""
    state_dir: Location | None = None
    """The daemon's own folder (databases, running attempts); null: `events/<event_name>/state`."""
    settle_time: SecondsOrZero = 1.0
    """Seconds for which a folder that was not renamed into place must not have changed before it is taken."""
    hold_timeout: Seconds | None = None
    """Seconds after which submissions of an event that cannot run become checking_error; null: they wait for ever."""

    @field_validator("n_workers")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("a whole number, not 0 (negative counts from the number of cores)")
        return value


class WorkerConfig(Section):
    """Where submissions run: what every kind of worker has. Each kind adds its own keys."""

    worker_type: Text
    """conda, or another installed worker, or package.module:Class of your own."""
    timeout: Seconds = 7200.0
    """Seconds that a submission may run."""
    env: Mapping[str, str | None] = Field(default_factory=dict)
    """Environment variables for submissions; a value of null passes the daemon's own on."""
    max_attempts: Annotated[Whole, Field(ge=1)] = 3
    """How often a submission is tried when the platform fails (a participant's failure is never tried again)."""
    run_as: Text | None = None
    """The user that submissions run as, where the daemon is root; null: the daemon's own."""
    max_log_bytes: Bytes = ByteSize(64 * 1024**2)
    """How much of a submission's output is kept, in bytes or as "64 MiB"; more is counted and thrown away."""
    max_output_bytes: Bytes = ByteSize(1024**3)
    """How large a submission and its training_output may be, in bytes or as "1 GiB"; larger ones are refused."""
    max_output_files: Annotated[Whole, Field(ge=1)] = 10_000
    """How many files a submission and its training_output may have."""
    submissions_dir: Location | None = None
    """As in `ramp`, which is its better place; used where `ramp` has none."""
    predictions_dir: Location | None = None
    """As in `ramp`, which is its better place; used where `ramp` has none."""
    logs_dir: Location | None = None
    """As in `ramp`, which is its better place; used where `ramp` has none."""

    @field_validator("env", mode="before")
    @classmethod
    def _environment(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError("a mapping of names to texts (or null)")  # noqa: TRY004 -- pydantic collects ValueErrors
        for name, text in value.items():
            if not (isinstance(name, str) and _ENV_NAME.fullmatch(name)):
                raise ValueError(f"names of letters, digits and '_', which {str(name)[:40]!r} is not")
            if isinstance(text, bool) or not (text is None or isinstance(text, str | int | float)):
                raise ValueError(f"texts, in quotes, which the value of {name} is not")
            if isinstance(text, str) and "\0" in text:
                raise ValueError(f"texts without NUL, which the value of {name} has")
        return {name: text if text is None else str(text) for name, text in value.items()}


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

    def masked(self) -> dict[str, Any]:
        """Return the settings for people to see: secrets and environment values are hidden."""
        worker = self.worker.model_dump(mode="json")
        worker["env"] = {name: None if text is None else "**********" for name, text in self.worker.env.items()}
        for name in _FOLDERS:
            del worker[name]
        return {
            "path": str(self.path),
            "deployment_dir": str(self.deployment_dir),
            "ramp": {name: _shown(getattr(self.ramp, name)) for name in RampSettings.__slots__},
            "dispatcher": {name: _shown(getattr(self.dispatcher, name)) for name in DispatcherSettings.__slots__},
            "worker": worker,
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
    warnings = _drop_legacy(data)
    problems.check_keys((), data, ("ramp", "dispatcher", "worker"))
    ramp = _section(problems, "ramp", RampSection, data.get("ramp"), needed="problem_name and event_name")
    dispatcher = _section(problems, "dispatcher", DispatcherSection, data.get("dispatcher", {}))
    worker = _worker(problems, data.get("worker"), worker_models)
    folders = _folders(problems, data)
    if problems or ramp is None or dispatcher is None or worker is None:
        raise problems.error()
    return Settings(
        path=path.absolute(),
        deployment_dir=root,
        ramp=_resolve_ramp(ramp, root, folders),
        dispatcher=_resolve_dispatcher(dispatcher, root, ramp.event_name),
        worker=worker,
        warnings=tuple(warnings),
    )


def _deployment_of(path: Path) -> Path:
    folder = path.absolute().parent
    return folder.parent.parent if folder.parent.name == "events" else folder


def _drop_legacy(data: dict[Any, Any]) -> list[str]:
    """Take out what older dispatchers knew and this one does not need; return a warning each."""
    warnings = []
    for section in ("dispatcher", "worker"):
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
    problems.check_keys((name,), data, tuple(model.model_fields))
    try:
        return model.model_validate({key: value for key, value in data.items() if key in model.model_fields})
    except ValidationError as error:
        problems.add_validation((name,), error, data)
        return None


def _worker(
    problems: Problems, data: object, worker_models: Callable[[str], type[WorkerConfig]]
) -> WorkerConfig | None:
    if not isinstance(data, dict):
        return _section(problems, "worker", WorkerConfig, data, needed="worker_type")
    worker_type = data.get("worker_type")
    if not isinstance(worker_type, str) or not worker_type:
        what = "is missing" if worker_type is None else f"found {shown(worker_type)}"
        problems.add(("worker", "worker_type"), what, "the name of a worker, such as conda")
        return None
    try:
        model = worker_models(worker_type)
    except UnknownWorkerTypeError as error:
        problems.add(("worker", "worker_type"), str(error))
        return None
    return _section(problems, "worker", model, data, needed="worker_type")


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


def _resolve_dispatcher(section: DispatcherSection, root: Path, event_name: str) -> DispatcherSettings:
    cores = len(os.sched_getaffinity(0))
    n_workers = section.n_workers if section.n_workers > 0 else max(1, cores + 1 + section.n_workers)
    state_dir = section.state_dir or Path("events") / event_name / "state"
    return DispatcherSettings(
        hunger_policy=section.hunger_policy or HungerPolicy.SLEEP,
        n_workers=n_workers,
        n_threads=section.n_threads,
        time_between_collection=section.time_between_collection,
        shutdown_grace=section.shutdown_grace,
        state_dir=Path(os.path.normpath(root / state_dir)),
        settle_time=section.settle_time,
        hold_timeout=section.hold_timeout,
    )


__all__ = ["ConfigError", "Section", "Settings", "UnknownWorkerTypeError", "WorkerConfig", "load_config"]
