from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from rampd.event import load_settings
from rampd.workers.dask_config import DaskConfig

if TYPE_CHECKING:
    from pathlib import Path

_TLS = {"tls_ca_file": "ca.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}


def _config(**settings: Any) -> DaskConfig:
    return DaskConfig.model_validate({"worker_type": "dask", "dask_scheduler": "tcp://127.0.0.1:8786", **settings})


def test_the_section_of_the_original() -> None:
    """What the document that rampd is made from shows is a valid section."""
    config = _config(conda_env="ramp-iris", n_workers=4)
    assert (config.conda_env, config.n_workers) == ("ramp-iris", 4)


def test_a_whole_set_of_tls_files() -> None:
    """Three files and a tls:// address go together."""
    assert str(_config(dask_scheduler="tls://10.0.0.1:8786", **_TLS).tls_client_key) == "key.pem"


@pytest.mark.parametrize("missing", [["tls_ca_file"], ["tls_client_cert"], ["tls_client_key"], list(_TLS)[:2]])
def test_half_a_set_of_tls_files(missing: list[str]) -> None:
    """It names what is missing."""
    given = {name: path for name, path in _TLS.items() if name not in missing}
    with pytest.raises(ValidationError, match=" and ".join(missing)):
        _config(dask_scheduler="tls://10.0.0.1:8786", **given)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8786", "http://127.0.0.1:8786", "tcp://127.0.0.1", "tcp://:8786", "tcp://h:99999", "tcp://h:x"],
)
def test_addresses_that_are_none(address: str) -> None:
    """Scheme, host and port, or nothing."""
    with pytest.raises(ValidationError, match="tcp://host:port"):
        _config(dask_scheduler=address)


@pytest.mark.parametrize(
    ("dispatcher", "expected", "warns"),
    [("{}", 5, False), ("{n_workers: 3}", 3, True), ("{hunger_policy: exit}", 5, False)],
)
def test_n_workers_counts_where_the_dispatchers_does_not_stand(
    tmp_path: Path, dispatcher: str, expected: int, *, warns: bool
) -> None:
    """worker.n_workers is what the original document shows; the dispatcher's counts, with a warning."""
    config = tmp_path / "config.yml"
    config.write_text(
        "ramp: {problem_name: iris, event_name: iris}\n"
        f"dispatcher: {dispatcher}\n"
        "worker: {worker_type: dask, dask_scheduler: 'tcp://127.0.0.1:8786', n_workers: 5}\n",
        encoding="utf-8",
    )
    settings = load_settings(config)
    assert settings.dispatcher.n_workers == expected
    assert any("worker.n_workers is ignored" in warning for warning in settings.warnings) is warns


@pytest.mark.parametrize("host", ["10.1.2.3", "scheduler.example.org", "[2001:db8::1]", "0.0.0.0"])  # noqa: S104 -- nobody binds to it
def test_plain_tcp_beyond_this_machine_is_warned_of(host: str) -> None:
    """One sentence says what an attacker could do, and how to turn TLS on."""
    (said,) = _config(dask_scheduler=f"tcp://{host}:8786", run_as="x").exposures()
    assert said.startswith(f"tcp://{host}:8786 is neither encrypted nor authenticated")
    for words in ("runs any code", "use tls://", "tls_ca_file, tls_client_cert and tls_client_key", "a firewall"):
        assert words in said


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:8786", "tcp://127.3.2.1:1", "tcp://[::1]:8786", "tcp://localhost:1"]
)
def test_loopback_is_not_warned_of(address: str) -> None:
    """Whoever reaches it is on this machine already."""
    assert _config(dask_scheduler=address, run_as="x").exposures() == []
    (said,) = _config(dask_scheduler=address).exposures()
    assert "the Dask workers' own user" in said
