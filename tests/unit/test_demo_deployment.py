"""The demo's deployment: its config is what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rampd.demo import deployment
from rampd.event import load_settings
from rampd.workers.conda import CondaConfig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("timeout_s", [0.5, 20.0, 1_000_000.0, 12_345_678.9])
def test_its_config_says_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float) -> None:
    """Whatever the environment's path is made of, and however long a submission may run."""
    monkeypatch.setattr(deployment, "write_kit", lambda *_: None)  # which needs the environment
    environment = tmp_path / 'a "quoted" 😀: # é'
    config = deployment.write(tmp_path / "demo", environment=environment, timeout_s=timeout_s)
    worker = load_settings(config).worker
    assert isinstance(worker, CondaConfig)
    assert (worker.conda_env, worker.timeout) == (str(environment), timeout_s)
