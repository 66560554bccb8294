"""The `worker` section of worker_type dask."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from rampd.config import WorkerConfig
from rampd.config_sections import Location, Text, Whole  # noqa: TC001 -- pydantic reads them at run time

_TLS = ("tls_ca_file", "tls_client_cert", "tls_client_key")


class DaskConfig(WorkerConfig):
    """The `worker` section of worker_type dask."""

    conda_env: Text = "base"
    """The environment on the Dask workers' hosts whose ramp-test runs: a name, or a path to a prefix."""
    n_workers: Whole | None = None
    """How many submissions run at once, as `dispatcher.n_workers`, which counts where both stand; null: its value."""
    tls_ca_file: Location | None = None
    """The certificate of the authority that signed the cluster's; null: no encryption. All three, or none."""
    tls_client_cert: Location | None = None
    """The daemon's own certificate."""
    tls_client_key: Annotated[Location | None, Field(validate_default=True)] = None
    """The key of the daemon's own certificate."""
    dask_scheduler: Text
    """The scheduler's address: tcp://host:8786, or tls://host:8786, which needs the three TLS files."""
    remote_kit_dir: Text | None = None
    """The kit's folder on the Dask workers' hosts; null: the same path as here."""
    remote_data_dir: Text | None = None
    """What holds the kit's `data` folder on the Dask workers' hosts; null: the same path as here."""
    remote_scratch_dir: Text | None = None
    """Where submissions live on the Dask workers' hosts while they run; null: their temporary folder."""

    @field_validator("n_workers")
    @classmethod
    def _not_zero(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("a whole number, not 0 (negative counts from the number of cores)")
        return value

    @field_validator("tls_client_key")
    @classmethod
    def _all_or_none(cls, value: object, info: ValidationInfo) -> object:
        given = {**info.data, "tls_client_key": value}
        missing = [name for name in _TLS if given.get(name) is None]
        if missing and len(missing) < len(_TLS):
            raise ValueError(
                f"{', '.join(_TLS)} together; {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
            )
        return value

    @field_validator("dask_scheduler")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        scheme, separator, rest = value.partition("://")
        host, _, port = rest.rpartition(":")
        if scheme not in ("tcp", "tls") or not separator or not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
            raise ValueError("tcp://host:port, or tls://host:port")
        if any(info.data.get(name) is not None for name in _TLS) and scheme == "tcp":
            raise ValueError(f"tls://{rest}, since TLS files are given")
        if scheme == "tls" and all(info.data.get(name) is None for name in _TLS) and "tls_client_key" in info.data:
            raise ValueError(f"tls:// only together with {', '.join(_TLS)}")
        return value

    @field_validator("remote_kit_dir", "remote_data_dir", "remote_scratch_dir")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError("an absolute path on the Dask workers' hosts")
        return value

    def exposures(self) -> list[str]:
        """Return a sentence for everything that is not protected with these settings, and how to protect it."""
        scheme, _, rest = self.dask_scheduler.partition("://")
        host = rest.rpartition(":")[0].strip("[]")
        is_local = host == "localhost"
        with suppress(ValueError):
            is_local = ipaddress.ip_address(host).is_loopback
        found = []
        if scheme == "tcp" and not is_local:
            found.append(
                f"{self.dask_scheduler} is neither encrypted nor authenticated: whoever reaches its port runs "
                "any code on every Dask worker and reads and changes what submissions send; use tls:// with "
                "worker.tls_ca_file, tls_client_cert and tls_client_key, or have a firewall let in its hosts only"
            )
        if self.run_as is None:
            found.append(
                "submissions run as the Dask workers' own user: they can read and change what it can; give Dask "
                "workers a user of their own, or start them as root with worker.run_as naming one"
            )
        return found
