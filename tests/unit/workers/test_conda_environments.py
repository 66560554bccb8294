from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rampd.errors import WorkerSetupError
from rampd.workers import conda_environments
from rampd.workers.conda_environments import CondaEnvironments, find_tool, is_path

if TYPE_CHECKING:
    from collections.abc import Callable

_VARIABLES = ("CONDA_ENVS_DIRS", "CONDA_ENVS_PATH", "MAMBA_ROOT_PREFIX", "CONDA_EXE", "MAMBA_EXE")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty home on a machine that has no conda."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.setattr(conda_environments, "_USUAL_PLACES", ())
    return folder


@pytest.fixture
def environments(tmp_path: Path) -> CondaEnvironments:
    """Give the environments as an event's deployment sees them."""
    return CondaEnvironments(tmp_path / "deployment")


def _make(prefix: Path) -> Path:
    (prefix / "conda-meta").mkdir(parents=True)
    return prefix


def _make_root(root: Path) -> Path:
    for name in ("conda-meta", "condabin", "envs"):
        (root / name).mkdir(parents=True)
    _make_tool(root / "bin" / "conda", [])
    return root


def _make_tool(path: Path, prefixes: list[Path], *, then: str = "") -> Path:
    """Write a conda that knows these prefixes, and counts how often it is asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = json.dumps({"envs": [str(prefix) for prefix in prefixes]})
    path.write_text(
        f"#!/bin/sh\necho \"$@\" >> '{path}.calls'\n{then}\n/bin/cat <<'END'\n{listed}\nEND\n", encoding="utf-8"
    )
    path.chmod(0o755)
    return path


def _calls(tool: Path) -> list[str]:
    calls = Path(f"{tool}.calls")
    return calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


@pytest.mark.parametrize("variable", ["CONDA_ENVS_DIRS", "CONDA_ENVS_PATH"])
async def test_in_the_folders_of_a_variable(
    tmp_path: Path, environments: CondaEnvironments, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Each of a variable's folders is looked into, the home's sign understood, missing ones passed over."""
    prefixes = [_make(tmp_path / "a" / "one"), _make(tmp_path / "home" / "b" / "two")]
    monkeypatch.setenv(variable, f"{tmp_path}/a:{tmp_path}/missing::~/b")
    assert [await environments.prefix_of(name) for name in ("one", "two")] == prefixes


async def test_in_the_folders_of_the_users_condarc(tmp_path: Path, home: Path, environments: CondaEnvironments) -> None:
    """The envs_dirs of ~/.condarc are looked into, the home's sign and variables in them understood."""
    (home / ".condarc").write_text(
        f"envs_dirs:\n  - {tmp_path}/a\n  - ~no-such-user/x\n  - ~/b\n  - $HOME/c", encoding="utf-8"
    )
    prefixes = [_make(tmp_path / "a" / "one"), _make(home / "b" / "two"), _make(home / "c" / "three")]
    assert [await environments.prefix_of(prefix.name) for prefix in prefixes] == prefixes


@pytest.mark.parametrize(
    "text", [b"envs_dirs: text\n", b"[]\n", b"envs_dirs: [\n", b"\xff\xfe\x00", b"", b"envs_dirs:\n", b"a: &a [*a]\n"]
)
async def test_a_condarc_that_cannot_be_understood(home: Path, environments: CondaEnvironments, text: bytes) -> None:
    """It is conda's business to complain of it: the other places are looked at all the same."""
    (home / ".condarc").write_bytes(text)
    prefix = _make(home / ".conda" / "envs" / "iris")
    assert await environments.prefix_of("iris") == prefix


@pytest.mark.parametrize("name", ["miniconda3", "miniforge3", "mambaforge", "anaconda3", "micromamba"])
async def test_below_a_usual_root(home: Path, environments: CondaEnvironments, name: str) -> None:
    """An installation in the home is found where installers put it, with its environments and its own condarc."""
    root = _make_root(home / name)
    prefix, other = _make(root / "envs" / "iris"), _make(home / "other" / "digits")
    (root / ".condarc").write_text("envs_dirs: [~/other]", encoding="utf-8")
    assert await environments.prefix_of("iris") == prefix
    assert await environments.prefix_of("digits") == other
    assert await environments.prefix_of("base") == root
    assert environments.existing() == ["base", "digits", "iris"]


@pytest.mark.parametrize("where", ["bin/conda", "condabin/conda"])
@pytest.mark.parametrize("variable", ["CONDA_EXE", "MAMBA_EXE", "PATH"])
async def test_the_root_of_an_executable(
    tmp_path: Path, environments: CondaEnvironments, monkeypatch: pytest.MonkeyPatch, variable: str, where: str
) -> None:
    """The installation that a conda belongs to is the base, whether a variable or PATH leads there."""
    root = _make_root(tmp_path / "somewhere")
    tool = _make_tool(root / where, [])
    monkeypatch.setenv(variable, str(tool.parent if variable == "PATH" else tool))
    assert await environments.prefix_of("base") == root


async def test_the_root_of_a_linked_executable(tmp_path: Path, home: Path, environments: CondaEnvironments) -> None:
    """A link to conda in a folder of PATH leads to the installation that it points to."""
    root = _make_root(tmp_path / "somewhere")
    (home / "bin" / "conda").symlink_to(root / "bin" / "conda")
    assert await environments.prefix_of("base") == root


async def test_the_root_of_micromamba(
    tmp_path: Path, environments: CondaEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base of micromamba is where MAMBA_ROOT_PREFIX says."""
    root = _make(tmp_path / "mamba")
    prefix = _make(root / "envs" / "iris")
    monkeypatch.setenv("MAMBA_ROOT_PREFIX", str(root))
    assert [await environments.prefix_of(name) for name in ("base", "iris")] == [root, prefix]


async def test_in_environments_txt(tmp_path: Path, home: Path, environments: CondaEnvironments) -> None:
    """An environment made with --prefix is known by its folder's name; lines of what is gone are passed over."""
    prefix = _make(tmp_path / "far" / "away")
    (home / ".conda").mkdir()
    (home / ".conda" / "environments.txt").write_text(f"/gone/away\n\n  \n{prefix}\n", encoding="utf-8")
    assert await environments.prefix_of("away") == prefix
    assert environments.existing() == ["away"]


async def test_folders_of_environments_go_first(
    tmp_path: Path, home: Path, environments: CondaEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one name is in several places, conda's own order decides."""
    root = _make_root(home / "miniconda3")
    places = [tmp_path / "variable", tmp_path / "condarc", root / "envs", home / ".conda" / "envs", tmp_path / "txt"]
    for place in places:
        _make(place / "iris")
    monkeypatch.setenv("CONDA_ENVS_DIRS", str(places[0]))
    (home / ".condarc").write_text(f"envs_dirs: ['{places[1]}']", encoding="utf-8")
    (home / ".conda" / "environments.txt").write_text(f"{places[4]}/iris\n", encoding="utf-8")
    found = []
    for place in places:
        found.append((await environments.prefix_of("iris")).parent)
        (place / "iris" / "conda-meta").rmdir()
    assert found == places


async def test_a_folder_that_is_no_environment(home: Path, environments: CondaEnvironments) -> None:
    """A folder without conda-meta and without a python is passed over."""
    (home / ".conda" / "envs" / "iris").mkdir(parents=True)
    (home / ".conda" / "envs" / ".conda_envs_dir_test").touch()
    with pytest.raises(WorkerSetupError):
        await environments.prefix_of("iris")
    assert environments.existing() == []


async def test_files_that_know_leave_conda_in_peace(home: Path, environments: CondaEnvironments) -> None:
    """To ask conda takes half a second: where files know, it is not asked."""
    tool = _make_tool(home / "bin" / "conda", [])
    prefix = _make(home / ".conda" / "envs" / "iris")
    assert await environments.prefix_of("iris") == prefix
    assert _calls(tool) == []


@pytest.mark.parametrize("name", ["conda", "mamba", "micromamba"])
async def test_conda_is_asked_where_files_do_not_know(
    tmp_path: Path, home: Path, environments: CondaEnvironments, name: str
) -> None:
    """Whichever tool there is says what it knows, once for all that it said."""
    prefixes = [_make(tmp_path / "a" / "one"), _make(tmp_path / "b" / "two")]
    tool = _make_tool(home / "bin" / name, prefixes)
    assert [await environments.prefix_of(prefix.name) for prefix in prefixes] == prefixes
    assert _calls(tool) == ["info --envs --json"]


async def test_the_base_that_conda_names(tmp_path: Path, home: Path, environments: CondaEnvironments) -> None:
    """The base is what looks like one, wherever it stands in conda's list, which is sorted."""
    root = _make_root(tmp_path / "z")
    _make_tool(home / "bin" / "conda", [_make(tmp_path / "a"), root])
    assert await environments.prefix_of("base") == root
    assert environments.existing() == ["a", "base"]


async def test_conda_is_asked_once_a_minute(
    tmp_path: Path, home: Path, environments: CondaEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A held event looks every five seconds; conda hears of it once a minute, and what is new then is found."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tool = _make_tool(home / "bin" / "conda", [])
    for step in (0.0, 5.0, 54.9):
        now += step
        with pytest.raises(WorkerSetupError):
            await environments.prefix_of("iris")
    assert len(_calls(tool)) == 1
    prefix = _make(tmp_path / "far" / "iris")
    _make_tool(tool, [prefix])
    now += 0.2
    assert await environments.prefix_of("iris") == prefix
    assert len(_calls(tool)) == 2


async def test_what_is_made_later_is_found(home: Path, environments: CondaEnvironments) -> None:
    """Files are read anew each time: nothing needs to be started again."""
    with pytest.raises(WorkerSetupError):
        await environments.prefix_of("iris")
    prefix = _make(home / ".conda" / "envs" / "iris")
    assert await environments.prefix_of("iris") == prefix


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.write_text("#!/nowhere/python\n", encoding="utf-8"),
        lambda path: path.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8"),
        lambda path: path.write_text("#!/bin/sh\necho no json\n", encoding="utf-8"),
        lambda path: path.write_text("#!/bin/sh\necho '[]'\n", encoding="utf-8"),
        lambda path: path.write_text("#!/bin/sh\necho '{\"envs\": [1]}'\n", encoding="utf-8"),
    ],
    ids=["no interpreter", "fails", "no json", "a list", "a number"],
)
async def test_a_broken_conda(home: Path, environments: CondaEnvironments, break_it: Callable[[Path], int]) -> None:
    """A conda that does not answer is as good as none: the error is that the environment is not there."""
    tool = _make_tool(home / "bin" / "conda", [])
    break_it(tool)
    _make(home / ".conda" / "envs" / "other")
    with pytest.raises(WorkerSetupError) as caught:
        await environments.prefix_of("iris")
    assert caught.value.existing == ("other",)


async def test_a_conda_that_hangs(home: Path, environments: CondaEnvironments, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after a while, and killed."""
    monkeypatch.setattr(conda_environments, "_ASK_TIMEOUT_S", 0.2)
    _make_tool(home / "bin" / "conda", [], then="exec /bin/sleep 1000")
    async with asyncio.timeout(5.0):
        with pytest.raises(WorkerSetupError):
            await environments.prefix_of("iris")


async def test_asking_can_be_cancelled(home: Path, environments: CondaEnvironments) -> None:
    """A cancelled question leaves no conda behind."""
    tool = _make_tool(home / "bin" / "conda", [], then="exec /bin/sleep 1000")
    asking = asyncio.ensure_future(environments.prefix_of("iris"))
    async with asyncio.timeout(5.0):
        while not _calls(tool):  # noqa: ASYNC110 -- the fake tells nobody
            await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_name_that_is_not_there(home: Path, environments: CondaEnvironments) -> None:
    """The error names the key, what was looked for, what there is, and that a path serves too."""
    root = _make_root(home / "miniconda3")
    for name in ("iris", "digits"):
        _make(root / "envs" / name)
    with pytest.raises(WorkerSetupError) as caught:
        await environments.prefix_of("irs")
    assert caught.value.existing == ("base", "digits", "iris")
    assert "worker.conda_env: there is no conda environment named 'irs'" in str(caught.value)
    assert "a path serves too" in str(caught.value)


async def test_without_any_conda(environments: CondaEnvironments) -> None:
    """Where there is no conda at all, base is not there either."""
    with pytest.raises(WorkerSetupError) as caught:
        await environments.prefix_of("base")
    assert caught.value.existing == ()
    assert find_tool() is None


@pytest.mark.parametrize("written", ["./env", "../deployment/env", "sub/../env", "ABSOLUTE", "~/env"])
async def test_a_path(tmp_path: Path, home: Path, environments: CondaEnvironments, written: str) -> None:
    """A path is relative to the deployment, or absolute, or in the home; what it is needs no conda-meta."""
    folders = [tmp_path / "deployment" / "env", tmp_path / "absolute", home / "env"]
    for folder in (*folders, tmp_path / "deployment" / "sub"):
        folder.mkdir(parents=True)
    expected = {"ABSOLUTE": folders[1], "~/env": folders[2]}.get(written, folders[0])
    found = await environments.prefix_of(written.replace("ABSOLUTE", str(folders[1])))
    assert found.samefile(expected)
    assert found.is_absolute()


@pytest.mark.parametrize("written", ["./nothing", "/nowhere/env", "~no-such-user/env"])
async def test_a_path_that_is_not_there(home: Path, environments: CondaEnvironments, written: str) -> None:
    """The error names the folder, and the environments that there are by name."""
    _make(home / ".conda" / "envs" / "iris")
    with pytest.raises(WorkerSetupError, match=r"worker.conda_env: there is no folder .*/") as caught:
        await environments.prefix_of(written)
    assert caught.value.existing == ("iris",)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("base", False), ("iris-2.0", False), ("./env", True), ("env/", True), (".venv", True), ("~", True)],
)
def test_what_is_a_path(written: str, expected: bool) -> None:
    """A slash, a dot or the home's sign in front makes a path of it."""
    assert is_path(written) is expected


async def test_a_folder_beside_is_no_name(tmp_path: Path, environments: CondaEnvironments) -> None:
    """A name means an environment of conda's, never a folder that happens to have it."""
    _make(tmp_path / "deployment" / "iris")
    with pytest.raises(WorkerSetupError):
        await environments.prefix_of("iris")


@pytest.mark.parametrize("variable", ["CONDA_EXE", "MAMBA_EXE"])
def test_the_tool_that_a_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A variable goes before PATH, unless it leads to nothing."""
    on_path, named = _make_tool(tmp_path / "home" / "bin" / "mamba", []), _make_tool(tmp_path / "conda", [])
    monkeypatch.setenv(variable, str(named))
    assert find_tool() == str(named)
    named.unlink()
    assert find_tool() == str(on_path)


def test_a_tool_that_no_variable_names(home: Path) -> None:
    """A conda in a usual place of the home is found without PATH, as a service has to."""
    root = _make_root(home / "miniforge3")
    assert find_tool() == os.fspath(root / "bin" / "conda")


async def test_a_home_that_cannot_be_looked_into(
    environments: CondaEnvironments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HOME may be somebody else's, root's after a `su` for one: there is no environment there, and no error."""
    monkeypatch.setenv("HOME", str(tmp_path / ("x" * 300)))
    for name in ("base", "ramp-iris"):
        with pytest.raises(WorkerSetupError, match=f"no conda environment named '{name}'"):
            await environments.prefix_of(name)
