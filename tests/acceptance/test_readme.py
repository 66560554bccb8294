"""What the README says that can be tried is tried."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from support.daemon import RampdProcess
from support.deployment import Deployment
from support.rampctl import rampctl
from support.requirements import needs

ROOT = Path(__file__).parent.parent.parent
_RECORD = '{"event":"daemon.ready","seq":3}'
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_where_the_gate_looks_for_them() -> None:
    """One sets up and runs the main job, one sets up and runs all tests; each is a line of its own."""
    lines = README.splitlines()
    assert lines.index("./bootstrap demo") < lines.index("./bootstrap tests")


def test_the_jq_lines_read_a_stream(tmp_path: Path) -> None:
    """Each prints what its comment promises."""
    needs("jq")
    event = Deployment(tmp_path)
    event.make_stub_environment()
    for name in ("one", "two"):
        event.submit(name)
    with RampdProcess(event.config) as daemon:
        daemon.finished("one", "two")
        assert daemon.stop() == 0
        (tmp_path / "stream.jsonl").write_bytes(b"".join(daemon.raw))
    commands = re.findall(r"^jq .*$", README, re.MULTILINE)
    assert len(commands) == 2
    table, mean = (
        subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for command in commands
    )
    assert [line.split("\t")[:2] for line in sorted(table.splitlines())] == [["one", "ok"], ["two", "ok"]]
    assert abs(float(mean) - 0.961) < 1e-9


def test_the_journal_lines_pass_over_what_is_no_record() -> None:
    """A unit's journal has systemd's own lines and the stacks of a crash in it."""
    needs("jq")
    journal = f'Starting rampd@iris.service...\n{_RECORD}\n  File "core.py", line 59 in run\nFailed.\n'
    texts = [README, (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")]
    shown = [found for text in texts for found in re.findall(r"journalctl [^|`\n]*\| (jq [^`#\n]*)", text)]
    assert len(shown) == 2
    for command in shown:
        printed = subprocess.run(["sh", "-c", command], input=journal, capture_output=True, text=True, check=True)
        assert json.loads(printed.stdout)["event"] == "daemon.ready"


def test_every_command_of_the_readme_exists() -> None:
    """No command line is shown that rampctl does not know."""
    shown = set(re.findall(r"^rampctl (\w+)", README, re.MULTILINE))
    known = set(re.findall(r"^  (\w+) ", rampctl("--help").stdout, re.MULTILINE))
    assert shown
    assert shown <= known


def test_every_file_that_the_readme_links_to_exists() -> None:
    """A link within the project leads somewhere."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_config_of_the_readme_is_one(tmp_path: Path) -> None:
    """Who copies one and changes names has a valid config; where only the worker is shown, the rest is the first's."""
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    rest = blocks[0].partition("worker:")[0]
    ours = [block for block in blocks if "my_worker:" not in block]  # the reader's own: docs/workers.md is tried whole
    assert len(ours) >= 3
    for block in ours:
        config = tmp_path / "config.yml"
        config.write_text(block if "ramp:" in block else rest + block, encoding="utf-8")
        assert rampctl("status", config=config).status == 0


def test_the_architecture_names_real_modules() -> None:
    """Every room of the picture is there, and every room is in the picture."""
    (picture,) = re.findall(r"```\n(cli/ .*?)```", README, re.DOTALL)
    words = set(re.findall(r"[a-z_]+", picture))
    package = ROOT / "rampd"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    small = {"clock", "exit_statuses", "config_problems", "config_sections", "yaml_document"}
    small |= {"journal_rows", "journal_schema"}
    beside = {"state_lock", "logs", "demo", "testing", "__init__", "__main__"}
    assert rooms - small - beside <= words
