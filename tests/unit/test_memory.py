"""What keeps the memory of a process that runs for months as it was."""

from __future__ import annotations

import pathlib
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from rampd.memory import keep_steady


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give pathlib its own `sys` back after each test."""
    for module in filter(None, (pathlib, sys.modules.get("pathlib._local"))):
        if getattr(module, "sys", None) is not None:
            monkeypatch.setattr(module, "sys", sys)


def test_the_names_in_a_path_are_not_interned() -> None:
    """What `sys.intern` is given next is the first of its value: pathlib had given it none."""
    keep_steady()
    name = secrets.token_hex(16)
    path = Path("/somewhere") / name
    assert path.parts == ("/", "somewhere", name)
    same = "".join(list(name))
    assert sys.intern(same) is same


def test_paths_are_what_they_were() -> None:
    """Those made before and after are equal, in every way that paths are used."""
    before = Path("/somewhere/else/file.txt")
    keep_steady()
    keep_steady()
    after = Path("/somewhere/else") / "file.txt"
    assert after == before
    assert hash(after) == hash(before)
    assert sorted([after, Path("/somewhere/apart")]) == [Path("/somewhere/apart"), before]
    assert after.relative_to("/somewhere").with_suffix(".csv") == Path("else/file.csv")
    assert list(Path(__file__).parent.glob("test_memory.py")) == [Path(__file__)]
    assert Path(__file__).resolve().exists()


_ARENAS = """
import ctypes, sys, threading
from rampd.memory import keep_steady

if sys.argv[1] == "steady":
    keep_steady()
started = threading.Barrier(4)


def use_memory():
    held = [bytearray(2000) for _ in range(20)]
    started.wait()
    del held


threads = [threading.Thread(target=use_memory) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.parametrize(("what", "is_one"), [("steady", True), ("as it is", False)])
def test_threads_share_one_heap(what: str, *, is_one: bool) -> None:
    """As glibc tells (malloc_info(3)); without a word to it, threads that run at once have several."""
    done = subprocess.run([sys.executable, "-c", _ARENAS, what], capture_output=True, timeout=60, check=True)
    assert (done.stdout.count(b"<heap nr=") == 1) is is_one
