"""Commands and answers of a detached run: what is quoted, what is read, and what nonsense does."""

from __future__ import annotations

import io
import shlex
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rampd.remote import detached_run as detached
from rampd.remote.detached_run import (
    DetachedRun,
    Ending,
    FarSideError,
    Problem,
    RunSettings,
    RunState,
    RunStatus,
    parse,
)
from rampd.remote.hosts import MAX_STDERR_BYTES, Completed, printable

RUN = DetachedRun("5f" * 16, "first", "/home/ubuntu/ramp-kits/iris")
HEAD = f"rampd-run 1 {RUN.run_id} ".encode()


def answer(line: bytes, rest: bytes = b"", *, before: bytes = b"", status: int = 0, stderr: bytes = b"") -> Completed:
    """Return what a command answered."""
    return Completed(status, before + HEAD + line + b"\n" + rest, stderr)


def test_an_answer_of_a_run_under_way_is_read() -> None:
    """With the piece of the log that follows, whatever is in it."""
    line = b"state=running status=- word=- rss=- log=12 more=- spot=1 problem=-"
    assert parse(RUN, answer(line, b"\xff\nx" + HEAD)) == (
        RunStatus(RunState.RUNNING, 12, spot_notice=True),
        b"\xff\nx" + HEAD,
    )


def test_an_answer_of_an_ended_run_is_read() -> None:
    """Memory in bytes, though it is written in KiB; what was not kept of the log is counted."""
    line = b"state=exited status=3 word=ok rss=2048 log=12 more=7 spot=0 problem=-"
    status, _ = parse(RUN, answer(line))
    assert status == RunStatus(
        RunState.EXITED, 12, exit_status=3, ending=Ending.OK, max_rss_bytes=2 << 20, log_capped_bytes=7
    )


def test_a_refusal_is_read() -> None:
    """Also where nothing but the word is said."""
    assert parse(RUN, answer(b"problem=disk-full", status=1))[0] == RunStatus(
        RunState.ABSENT, 0, problem=Problem.DISK_FULL
    )


def test_what_a_login_shell_prints_before_is_passed_over() -> None:
    """A line of an image's .bashrc is no answer, and hides none."""
    assert parse(RUN, answer(b"state=absent", before=b"Welcome!\n"))[0].state is RunState.ABSENT


def test_fields_of_a_later_version_are_passed_over() -> None:
    """A run that a newer daemon started can be asked by this one."""
    assert parse(RUN, answer(b"state=starting colour=red"))[0].state is RunState.STARTING


@pytest.mark.parametrize(
    "completed",
    [
        Completed(127, b"", b"sh: 1: exec: not found\n"),
        Completed(0, b'Please login as the user "ubuntu" rather than the user "root".\n', b""),
        Completed(0, b"rampd-run 1 " + b"6e" * 16 + b" state=running\n", b""),
        Completed(0, b"x" + HEAD + b"state=running\n", b""),
        answer(b"state=dancing"),
        answer(b"state=exited status=256 word=ok"),
        answer(b"state=exited status=-1 word=ok"),
        answer(b"state=exited status=0 word=fine"),
        answer(b"state=running log=99999999999999999999"),
        answer("state=running log=٣".encode()),
        answer(b"state"),
        answer(b"state=running  log=1"),
        answer(b"problem=unheard-of"),
        answer(b""),
    ],
)
def test_nonsense_is_an_error_in_one_printable_line(completed: Completed) -> None:
    """Whoever reads the log sees what was said, escaped."""
    with pytest.raises(FarSideError) as caught:
        parse(RUN, completed)
    assert str(caught.value).isprintable()


@given(st.binary(), st.binary(max_size=300), st.integers(0, 255))
def test_whatever_is_answered_nothing_else_is_raised(before: bytes, line: bytes, status: int) -> None:
    """And what is made of it stays within its bounds."""
    read, said = RunStatus(RunState.ABSENT, 0), ""
    try:
        read, _ = parse(RUN, answer(line, before=before, status=status, stderr=before[:MAX_STDERR_BYTES]))
    except FarSideError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 2000
    assert read.log_bytes >= 0
    assert read.exit_status is None or 0 <= read.exit_status <= 255


@given(
    st.builds(
        lambda **words: " ".join(f"{key}={value}" for key, value in words.items()).encode(),
        state=st.sampled_from([*RunState, "x", ""]),
        status=st.sampled_from(["-", "0", "255", "256", "x", ""]),
        word=st.sampled_from(["-", *Ending, "x"]),
        rss=st.sampled_from(["-", "0", "77", "x", "9" * 17]),
        log=st.sampled_from(["0", "1", "-", "x"]),
        problem=st.sampled_from(["-", *Problem, "x"]),
    )
)
def test_an_exited_run_has_an_ending_and_no_other_has(line: bytes) -> None:
    """However the words are put together."""
    try:
        status, _ = parse(RUN, answer(line))
    except FarSideError:
        return
    assert (status.ending is not None) == (status.state is RunState.EXITED)
    assert status.exit_status is None or status.ending is not None


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60))
def test_settings_are_quoted_for_a_shell(text: str) -> None:
    """Whatever a name, a folder or a value is, a POSIX shell reads back that very text."""
    command = detached.install(
        DetachedRun(RUN.run_id, text, text), RunSettings(1.2, 5, environment={"VALUE": text}, imds_url=text)
    )
    with tarfile.open(fileobj=io.BytesIO(command.input)) as tar:
        files = {member.name: tar.extractfile(member).read().decode() for member in tar}  # type: ignore[union-attr]
    settings = dict(word.split("=", 1) for word in shlex.split(files["settings"]))
    assert (settings["name"], settings["kit"], settings["imds_url"]) == (text, text, text)
    assert settings["timeout_s"] == "2"
    assert shlex.split(files["environment"]) == ["export", f"VALUE={text}"]
    assert files["far_side"].startswith("#!/bin/sh\n")


@pytest.mark.parametrize("run_id", ["", "../x", "a b", "$(id)", "a\n", "x" * 101])
def test_an_id_that_is_no_name_is_refused(run_id: str) -> None:
    """It is a folder's name, and part of every command."""
    with pytest.raises(ValueError, match="not a run's id"):
        DetachedRun(run_id, "first", "/kit")


@pytest.mark.parametrize("name", ["", "A-B", "1A", "A=B", "A\nB", "é"])
def test_a_variable_that_no_shell_exports_is_refused(name: str) -> None:
    """`export` would take it for something else."""
    with pytest.raises(ValueError, match="not a variable's name"):
        detached.install(RUN, RunSettings(1, 1, environment={name: "x"}))


@pytest.mark.parametrize(
    "command",
    [
        detached.upload(RUN),
        detached.launch(RUN),
        detached.poll(RUN, 0, 1),
        detached.stop(RUN),
        detached.collect(RUN),
        detached.cleanup(RUN),
        detached.install(RUN, RunSettings(1, 1)).command,
    ],
)
def test_commands_are_one_line_for_any_shell(command: str) -> None:
    """`exec sh -c` and one quoted word: what the far user's login shell makes of the rest does not matter."""
    assert "\n" not in command
    assert shlex.split(command)[:3] == ["exec", "sh", "-c"]
    assert len(shlex.split(command)) == 4


def test_what_others_say_is_made_printable() -> None:
    """Bounded, and without anything that a terminal acts on."""
    assert printable("\x1b[31mé\n" + "x" * 500) == r"\x1b[31m\xe9\n" + "x" * 193
