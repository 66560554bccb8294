"""The deployment's own config.yml (`--database-config`): its section `sqlalchemy`, which says where the board is.

Only that section is read; the others (flask) are ramp-frontend's. The password stays a secret wherever it goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator

from rampd.config_problems import Problems, shown
from rampd.config_sections import Section, Text, Whole
from rampd.credentials import DATABASE_PASSWORD, read_credential
from rampd.yaml_document import as_written, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DRIVERS = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
"""What `drivername` may say: libpq's drivers, whose words (hosts, query options, PG… variables) psycopg 3 shares."""
_SECTION = "sqlalchemy"


class SqlalchemySection(Section):
    """Where the RAMP board's PostgreSQL is: SQLAlchemy's `URL.create`, as RAMP's own tools read it."""

    drivername: Text
    """postgresql, as RAMP's template says; postgresql+psycopg2 and postgresql+psycopg mean the same here."""
    username: Text | None = None
    """The database's user; null: libpq's own choice (PGUSER, else the user rampd runs as)."""
    password: SecretStr | None = None
    """Its password; null: the credential database_password that systemd hands over (LoadCredential=), else libpq's own
    choice (PGPASSWORD, ~/.pgpass, or none)."""
    host: Text | None = None
    """The server, or the folder of its socket; null: libpq's own choice (PGHOST, else the local socket)."""
    port: Annotated[Whole, Field(ge=1, le=65535)] | None = None
    """Its port; null: libpq's own choice (PGPORT, else 5432)."""
    database: Text
    """The database's name."""
    query: Mapping[str, str] = Field(default_factory=dict)
    """libpq's further options, sslmode say."""

    @field_validator("drivername")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in DRIVERS:
            raise ValueError(
                f"{', '.join(DRIVERS)}: rampd speaks to PostgreSQL through psycopg 3 (RAMP's boards are PostgreSQL)"
            )
        return value

    @field_validator("username", "password", "host", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        # URL.create takes an empty text for "not given", and templates leave it so.
        return None if value == "" else value

    @field_validator("query", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        if not isinstance(value, dict) or any(isinstance(one, dict | list) for one in value.values()):
            raise ValueError("a mapping of libpq's options to texts or numbers")
        return {str(key): as_written(one) for key, one in value.items()}

    @field_validator("password", mode="before")
    @classmethod
    def _digits(cls, value: object) -> object:
        # `password: 1234` is a number to YAML and a password to everybody else.
        return as_written(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@dataclass(frozen=True, slots=True)
class GivenBoard:
    """What the command line says of the board."""

    database_config: Path
    python: Path | None = None
    only_while_open: bool = False
    """Whether an event is served between its opening and its closing alone (--events-dir)."""


board_of_process: ContextVar[GivenBoard | None] = ContextVar("board_of_process", default=None)
"""The board that every event of this process is on: one a command line, whatever loads an event's settings and when."""


@dataclass(frozen=True, slots=True)
class BoardSettings:
    """The RAMP board: where its database is, and which interpreter has ramp_database."""

    path: Path
    """The file that says so."""
    database: SqlalchemySection
    python: Path | None = None
    """The interpreter that builds leaderboards; None for the first that can import ramp_database."""
    only_while_open: bool = False
    """Whether the event is served between its opening and its closing alone."""
    has_password_in_file: bool = False
    """Whether the file itself has the password, and so should be kept from others."""

    def masked(self) -> dict[str, Any]:
        """Return the settings for people to see, without the password."""
        return {
            "path": str(self.path),
            "database": self.database.model_dump(mode="json") | {"query": sorted(self.database.query)},
            "python": str(self.python) if self.python is not None else None,
        }


def load_board(given: GivenBoard) -> BoardSettings:
    """Read a deployment's database config; sections other than `sqlalchemy` are not looked at.

    Raises
    ------
    ConfigError
        With every problem of the section; or the password that the service manager hands over cannot be read.
    """
    path = given.database_config
    document = read_yaml(path)
    problems = Problems(path, document)
    data = document.data.get(_SECTION) if isinstance(document.data, dict) else None
    section: SqlalchemySection | None = None
    if not isinstance(data, dict):
        what = "is missing" if data is None else f"found {shown(data)}"
        problems.add((_SECTION,), what, f"a section with {_named(SqlalchemySection.model_fields)}")
    else:
        known: Sequence[str] = tuple(SqlalchemySection.model_fields)
        problems.check_keys((_SECTION,), data, known)
        try:
            section = SqlalchemySection.model_validate({key: data[key] for key in data if key in known})
        except ValidationError as error:
            problems.add_validation((_SECTION,), error, data)
    if problems or section is None:
        raise problems.error()
    in_file = section.password is not None
    if not in_file and (password := read_credential(DATABASE_PASSWORD)) is not None:
        section = section.model_copy(update={"password": SecretStr(password)})
    return BoardSettings(path.absolute(), section, given.python, given.only_while_open, in_file)


def _named(fields: Iterable[str]) -> str:
    return ", ".join(fields)
