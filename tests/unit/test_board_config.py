"""The deployment's file: the section sqlalchemy as RAMP's template has it, and what is said of a wrong one."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rampd.board_config import DRIVERS, GivenBoard, board_of_process, load_board
from rampd.errors import ConfigError, StoreError
from rampd.event import build_store, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "made-up-on-the-spot"  # noqa: S105 -- nobody's
TEMPLATE = f"""
flask:
    secret_key: abcdefghijkl
    mail_default_sender: ['RAMP admin', 'rampmailer@localhost.com']
sqlalchemy:
    drivername: postgresql
    username: mrramp
    password: {SECRET}
    host: localhost
    port: 5432
    database: databoard
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a deployment's file as RAMP's template has it."""
    path = tmp_path / "config.yml"
    path.write_text(TEMPLATE, encoding="utf-8")
    return path


def test_the_template_works_as_it_stands(path: Path) -> None:
    """Every key of the section is read, the other sections are not looked at, the password stays hidden."""
    board = load_board(GivenBoard(path))
    assert board.database.password is not None
    assert board.database.password.get_secret_value() == SECRET
    assert (board.database.host, board.database.port, board.database.database) == ("localhost", 5432, "databoard")
    assert SECRET not in repr(board)
    assert SECRET not in str(board.masked())


@pytest.mark.parametrize("drivername", DRIVERS)
def test_drivers_of_libpq_are_honoured(path: Path, drivername: str) -> None:
    """Their names differ, their words do not."""
    path.write_text(TEMPLATE.replace("drivername: postgresql", f"drivername: {drivername}"), encoding="utf-8")
    assert load_board(GivenBoard(path)).database.drivername == drivername


def test_what_is_empty_is_left_to_libpq(path: Path) -> None:
    """A text that is empty, or a key that is missing, means what it means to libpq; digits are a password too."""
    path.write_text("sqlalchemy: {drivername: postgresql, host: '', password: 1234, database: d}\n", encoding="utf-8")
    database = load_board(GivenBoard(path)).database
    assert (database.username, database.host, database.port) == (None, None, None)
    assert database.password is not None
    assert database.password.get_secret_value() == "1234"


@pytest.mark.parametrize("written", ["0123", "1_2", "12:34", "3.10"])
def test_a_password_is_what_was_written(path: Path, written: str) -> None:
    """`0123` is 83 to YAML, and to nobody else."""
    path.write_text(f"sqlalchemy: {{drivername: postgresql, password: {written}, database: d}}\n", encoding="utf-8")
    password = load_board(GivenBoard(path)).database.password
    assert password is not None
    assert password.get_secret_value() == written


def test_the_service_manager_s_password_counts_where_the_file_has_none(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What systemd hands over need not stand in the file; a password in it is its owner's own word."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "database_password").write_text("handed over\n", encoding="utf-8")
    assert load_board(GivenBoard(path)).has_password_in_file
    own = load_board(GivenBoard(path)).database.password
    assert own is not None
    assert own.get_secret_value() != "handed over"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "password" not in line]
    path.write_text("\n".join(lines), encoding="utf-8")
    board = load_board(GivenBoard(path))
    assert not board.has_password_in_file
    assert board.database.password is not None
    assert board.database.password.get_secret_value() == "handed over"
    assert "handed over" not in repr(board) + str(board.masked())


def test_options_of_libpq_are_texts(path: Path) -> None:
    """Numbers in YAML are texts to libpq."""
    path.write_text(TEMPLATE + "    query: {sslmode: require, connect_timeout: 9}\n", encoding="utf-8")
    assert load_board(GivenBoard(path)).database.query == {"sslmode": "require", "connect_timeout": "9"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("postgresql", "mysql"), "sqlalchemy.drivername: found 'mysql'; allowed: postgresql, postgresql+psycopg"),
        (("postgresql", "postgresql+pg8000"), "psycopg 3"),
        (("    database: databoard\n", ""), "sqlalchemy.database: is missing"),
        (("username", "user_name"), "sqlalchemy.user_name: is no key of rampd's; did you mean username?"),
        (("5432", "'5432'"), "sqlalchemy.port: found '5432'; allowed: a whole number, without quotes"),
        (("5432", "99999"), "sqlalchemy.port: found 99999"),
        (("port: 5432", "query: [sslmode]"), "sqlalchemy.query: found a list; allowed: a mapping of libpq's options"),
        ((SECRET, f"[{SECRET}]"), "sqlalchemy.password: found (hidden)"),
        (("sqlalchemy:", "sqlalchemie:"), "sqlalchemy: is missing; allowed: a section with drivername"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(path: Path, change: tuple[str, str], said: str) -> None:
    """File, line, key path, what was found and what is allowed; never the password."""
    path.write_text(TEMPLATE.replace(*change, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_board(GivenBoard(path))
    text = str(caught.value)
    assert text.startswith(f"{path}:")
    assert said in text
    assert SECRET not in text


@pytest.fixture
def given(path: Path) -> Iterator[GivenBoard]:
    """Have the process be given the board on its command line."""
    given = GivenBoard(path)
    token = board_of_process.set(given)
    yield given
    board_of_process.reset(token)


@pytest.mark.parametrize(
    ("place", "deployment"), [("events/iris/config.yml", "."), ("elsewhere/event.yml", "."), ("event.yml", ".")]
)
def test_an_event_is_loaded_with_the_board(given: GivenBoard, tmp_path: Path, place: str, deployment: str) -> None:
    """Its relative paths are relative to the board's file, as for RAMP's own dispatcher."""
    config = tmp_path / place
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("ramp: {problem_name: iris, event_name: iris}\nworker: {worker_type: conda}\n", encoding="utf-8")
    settings = load_settings(config)
    assert settings.deployment_dir == tmp_path / deployment
    assert settings.board is not None
    assert settings.board.path == given.database_config
    assert SECRET not in str(settings.masked())


def test_no_board_costs_nothing() -> None:
    """Neither command line imports a database driver that it is not asked for."""
    program = (
        "import sys; from rampd.cli import rampctl, rampd; from rampd.cli.commands import boarding, working; "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"sqlalchemy", "psycopg"} & set(done.stdout.split())


@pytest.mark.parametrize("library", ["psycopg", "sqlalchemy"])
def test_what_is_not_installed_is_said(
    given: GivenBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    """The board is an extra: a sentence says which."""
    config = tmp_path / "event.yml"
    config.write_text("ramp: {problem_name: iris, event_name: iris}\nworker: {worker_type: conda}\n", encoding="utf-8")
    for module in [name for name in sys.modules if name.startswith(("rampd.stores.rampboard", "rampd.stores.board_"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(StoreError, match=rf"{library}.* pip install 'rampd\[board\]'"):
        build_store(load_settings(config))
