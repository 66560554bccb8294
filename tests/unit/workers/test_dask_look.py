from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rampd.workers import dask_look
from rampd.workers.dask_look import Missing, look, prefix_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a host without any environment."""
    for name in ("CONDA_ENVS_DIRS", "CONDA_ENVS_PATH", "CONDA_EXE", "MAMBA_EXE", "MAMBA_ROOT_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(dask_look, "_USUAL_PLACES", ())
    return tmp_path


def _environment(path: Path) -> Path:
    (path / "conda-meta").mkdir(parents=True)
    return path


@pytest.mark.parametrize("root", ["miniconda3", "miniforge3", "mambaforge", "anaconda3", "micromamba"])
def test_environments_of_the_usual_installations(home: Path, root: str) -> None:
    """Base is the installation, a name is below its envs."""
    base = _environment(home / root)
    named = _environment(base / "envs" / "ramp-iris")
    assert prefix_of("base") == str(base)
    assert prefix_of("ramp-iris") == str(named)


def test_environments_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONDA_ENVS_DIRS, the list that conda keeps, and envs_dirs of .condarc are looked through."""
    one, two, three = (_environment(home / where) for where in ("a/one", "b/two", "c/three"))
    monkeypatch.setenv("CONDA_ENVS_DIRS", str(home / "a"))
    (home / ".conda").mkdir()
    (home / ".conda" / "environments.txt").write_text(f"{two}\n/gone\n", encoding="utf-8")
    (home / ".condarc").write_text(f"channels:\n  - x\nenvs_dirs:\n  - {home}/c\nother: 1\n", encoding="utf-8")
    assert [prefix_of(name) for name in ("one", "two", "three")] == [str(one), str(two), str(three)]


def test_a_path_of_a_plain_virtual_environment(home: Path) -> None:
    """A path serves whatever is there."""
    (home / "venv" / "bin").mkdir(parents=True)
    assert prefix_of(str(home / "venv")) == str(home / "venv")
    assert prefix_of("~/venv") == str(home / "venv")


def test_a_name_that_nobody_has_names_those_that_there_are(home: Path) -> None:
    """So that the operator sees the misspelling."""
    base = _environment(home / "miniconda3")
    _environment(base / "envs" / "ramp-iris")
    with pytest.raises(Missing, match="no conda environment named 'ramp-irs'") as caught:
        prefix_of("ramp-irs")
    assert caught.value.existing == ["base", "ramp-iris"]


def _wanted(home: Path, **more: Any) -> dict[str, Any]:
    prefix = home / "venv"
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    (prefix / "bin" / "ramp-test").write_text("", encoding="ascii")
    (prefix / "bin" / "ramp-test").chmod(0o755)
    (home / "kits" / "iris").mkdir(parents=True, exist_ok=True)
    (home / "kits" / "iris" / "problem.py").touch()
    return {
        "conda_env": str(prefix),
        "kit_dir": str(home / "kits" / "iris"),
        "kit_key": "ramp.kit_dir",
        "data_dir": str(home),
        "data_key": "ramp.data_dir",
        "run_as": None,
        **more,
    }


def test_a_host_that_has_everything(home: Path) -> None:
    """The prefix comes back, and the user that submissions run as."""
    found = look(_wanted(home))
    assert found["prefix"] == str(home / "venv")
    assert found["user"]


@pytest.mark.parametrize(
    ("change", "sentence", "existing"),
    [
        ({"kit_dir": "HOME/kits/irs"}, "ramp.kit_dir: there is no HOME/kits/irs/problem.py", ["iris"]),
        ({"data_dir": "HOME/kits/data"}, "ramp.data_dir: there is no folder HOME/kits/data", ["iris"]),
        ({"run_as": "nobody-of-this-name"}, "worker.run_as: there is no user 'nobody-of-this-name'", []),
    ],
)
def test_what_a_host_lacks(home: Path, change: dict[str, str], sentence: str, existing: list[str]) -> None:
    """It is named with its key, and with what stands beside it."""
    wanted = _wanted(home, **{key: text.replace("HOME", str(home)) for key, text in change.items()})
    with pytest.raises(Missing) as caught:
        look(wanted)
    assert caught.value.missing == sentence.replace("HOME", str(home))
    assert caught.value.existing == existing
