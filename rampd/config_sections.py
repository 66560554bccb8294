"""The sections of an event's config as pydantic models, with a docstring a field: its unit, and what null means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, field_validator

from rampd.states import HungerPolicy
from rampd.yaml_document import as_written

_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _number(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError("a number, without quotes")  # noqa: TRY004 -- pydantic collects ValueErrors
    return value


def _whole(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError("a whole number, without quotes")  # noqa: TRY004 -- as above
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a number of seconds")
    return value


def _text(value: object) -> object:
    # `event_name: 2026` is a number to YAML and a name to everybody else.
    return as_written(value) if isinstance(value, int) and not isinstance(value, bool) else value


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
Whole = Annotated[int, BeforeValidator(_whole)]
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0), AfterValidator(_finite)]
SecondsOrZero = Annotated[float, BeforeValidator(_number), Field(ge=0), AfterValidator(_finite)]


class Section(BaseModel):
    """Base of every part of a config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


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

    def advice(self, dispatcher: DispatcherSection) -> Sequence[str]:
        """Return what works and should be known all the same, a sentence each; shown once, as the config's warnings."""
        del dispatcher
        return ()

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
        return {name: text if text is None else as_written(text) for name, text in value.items()}
