from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["rampd.daemon", "rampd.workers.conda", "rampd.workers.dask", "rampd.cli.rampctl"])
def test_who_does_not_connect_does_not_import_distributed(module: str) -> None:
    """0.7 s and 40 MB are paid by events that use Dask; `rampctl status` reads their allocations without it."""
    code = f"import sys, {module}; print(sorted({{'dask', 'distributed'}} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
