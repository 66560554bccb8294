"""The SSH pool against a real OpenSSH server."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rampd.errors import ResultsError
from rampd.remote.ssh import (
    Completed,
    SshAuthError,
    SshConnectionError,
    SshHost,
    SshHostKeyError,
    SshOutputError,
    SshPool,
)
from support.sshd import Sshd
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Record = dict[str, Any]

_PATIENCE_S = 30.0


async def run(pool: SshPool, host: SshHost, command: str, **more: Any) -> Completed:
    """Run a command with generous patience."""
    return await pool.run(host, command, **{"timeout_s": _PATIENCE_S, "max_output_bytes": 1 << 20, **more})


def names(records: Sequence[Record]) -> list[str]:
    """Return the names of the pool's records."""
    return [record["event"] for record in records if record["event"].startswith("ssh.")]


async def appearance(path: Path) -> None:
    """Wait until a file is there and has something in it."""
    await until(lambda: path.exists() and path.read_text(encoding="utf-8").strip())


async def test_commands_share_one_kept_connection(pool: SshPool, host: SshHost, log_records: list[Record]) -> None:
    """Ten callers at once, and one later, are served by one handshake."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(pool, host, f"echo {number}")) for number in range(10)]
    later = await run(pool, host, 'echo "$SSH_CONNECTION"')
    again = await run(pool, host, 'echo "$SSH_CONNECTION"')
    assert [task.result().stdout for task in tasks] == [f"{number}\n".encode() for number in range(10)]
    assert later.stdout == again.stdout
    assert names(log_records) == ["ssh.connected"]
    assert log_records[0]["instance_id"] == "i-0a"


async def test_more_commands_than_sessions_wait_their_turn(pool: SshPool, host: SshHost) -> None:
    """A connection may have ten sessions (MaxSessions); forty commands at once are all answered."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(pool, host, f"sleep 0.05; echo {number}")) for number in range(40)]
    assert [int(task.result().stdout) for task in tasks] == list(range(40))


async def test_a_command_is_told_apart_by_status_and_both_outputs(pool: SshPool, host: SshHost) -> None:
    """Status, stdout and stderr come back as they were; stdin arrives as it was given."""
    assert await run(pool, host, "cat; echo no >&2; exit 7", input=b"\0\xff\n") == Completed(7, b"\0\xff\n", b"no\n")


async def test_death_by_a_signal_is_a_status(pool: SshPool, host: SshHost) -> None:
    """It is 128+n, as shells say it."""
    assert (await run(pool, host, "kill -KILL $$")).status == 137


async def test_a_flood_on_stderr_costs_no_memory(pool: SshPool, host: SshHost) -> None:
    """Only its beginning is kept, and the command ends all the same."""
    done = await run(pool, host, "head -c 8000000 /dev/zero >&2; echo done")
    assert (done.status, done.stdout, len(done.stderr)) == (0, b"done\n", 4096)


async def test_output_beyond_what_was_asked_for_is_refused(pool: SshPool, host: SshHost) -> None:
    """An endless output ends the call at once, and the host can be used afterwards."""
    with pytest.raises(SshOutputError, match="more than 1000 bytes"):
        await run(pool, host, "cat /dev/zero", max_output_bytes=1000)
    assert (await run(pool, host, "echo still there")).stdout == b"still there\n"


async def test_files_travel_both_ways(pool: SshPool, host: SshHost, tmp_path: Path) -> None:
    """Eight megabytes come back as they went."""
    data = os.urandom(8_000_000)
    (tmp_path / "there").write_bytes(data)
    sent = await pool.send(host, "cat >copy; wc -c <copy", tmp_path / "there", timeout_s=_PATIENCE_S)
    back = tmp_path / "back"
    got = await pool.receive(host, "cat copy; rm copy", back, max_bytes=len(data), timeout_s=_PATIENCE_S)
    assert (sent.status, int(sent.stdout), got.status) == (0, len(data), 0)
    assert back.read_bytes() == data


async def test_a_command_that_reads_no_further_ends_the_sending(pool: SshPool, host: SshHost, tmp_path: Path) -> None:
    """Its own status tells why; nobody waits for the rest to be taken."""
    (tmp_path / "large").write_bytes(bytes(30_000_000))
    done = await pool.send(
        host, "head -c 10 >/dev/null; echo full >&2; exit 4", tmp_path / "large", timeout_s=_PATIENCE_S
    )
    assert (done.status, done.stderr) == (4, b"full\n")


async def test_more_than_may_be_received_is_refused(pool: SshPool, host: SshHost, tmp_path: Path) -> None:
    """And nothing of it is left here."""
    with pytest.raises(SshOutputError):
        await pool.receive(host, "cat /dev/zero", tmp_path / "big", max_bytes=100_000, timeout_s=_PATIENCE_S)
    assert not (tmp_path / "big").exists()


async def test_what_a_failed_command_sent_is_not_kept(pool: SshPool, host: SshHost, tmp_path: Path) -> None:
    """A file that was received is there if the command succeeded, and only then."""
    done = await pool.receive(host, "echo half; exit 2", tmp_path / "half", max_bytes=100, timeout_s=_PATIENCE_S)
    assert done.status == 2
    assert not (tmp_path / "half").exists()


async def test_what_cannot_be_read_or_written_here_is_not_the_hosts_fault(
    pool: SshPool, host: SshHost, tmp_path: Path
) -> None:
    """A missing folder and a full disk are ResultsErrors with the path."""
    with pytest.raises(ResultsError, match="nowhere"):
        await pool.receive(host, "echo x", tmp_path / "nowhere" / "x", max_bytes=9, timeout_s=_PATIENCE_S)
    with pytest.raises(ResultsError, match="nothing"):
        await pool.send(host, "cat", tmp_path / "nothing", timeout_s=_PATIENCE_S)


async def test_a_connection_that_breaks_fails_its_command_and_is_opened_again(
    pool: SshPool, machine: Sshd, host: SshHost, log_records: list[Record]
) -> None:
    """What runs on it is told; the next command gets a new one, to the same key, and what was started goes on."""
    key = await pool.connect(host)
    running = asyncio.create_task(run(pool, host, 'echo up >"$HOME/up"; sleep 30'))
    await appearance(machine.home / "up")
    machine.cut_connections()
    with pytest.raises(SshConnectionError, match="broke"):
        await running
    assert (await run(pool, host, "echo again")).stdout == b"again\n"
    assert await pool.connect(host) == key == machine.host_key
    assert names(log_records) == ["ssh.connected", "ssh.lost", "ssh.connected"]


async def test_a_connection_that_breaks_while_nobody_looks_is_noticed(
    pool: SshPool, machine: Sshd, host: SshHost, log_records: list[Record]
) -> None:
    """The record comes without a call, and no later command is sent into the void."""
    await pool.connect(host)
    machine.cut_connections()
    await until(lambda: names(log_records) == ["ssh.connected", "ssh.lost"])
    assert (await run(pool, host, "echo again")).stdout == b"again\n"


async def test_a_connection_that_breaks_in_a_transfer_leaves_nothing_half_done_here(
    pool: SshPool, machine: Sshd, host: SshHost, tmp_path: Path
) -> None:
    """Sending and receiving both say so, and no file is left that looks whole."""
    (tmp_path / "large").write_bytes(bytes(50_000_000))
    sending = asyncio.create_task(
        pool.send(host, 'echo up >"$HOME/up"; sleep 30', tmp_path / "large", timeout_s=_PATIENCE_S)
    )
    await appearance(machine.home / "up")
    machine.cut_connections()
    with pytest.raises(SshConnectionError):
        await sending
    back = tmp_path / "back"
    command = 'head -c 300000 /dev/zero; echo up >"$HOME/up2"; sleep 30'
    receiving = asyncio.create_task(pool.receive(host, command, back, max_bytes=10**6, timeout_s=_PATIENCE_S))
    await appearance(machine.home / "up2")
    machine.cut_connections()
    with pytest.raises(SshConnectionError):
        await receiving
    assert not back.exists()


async def test_a_black_hole_costs_a_call_its_own_timeout_and_no_more(
    pool: SshPool, machine: Sshd, host: SshHost, log_records: list[Record]
) -> None:
    """A host that stops answering fails the call; once it answers again it is connected to again."""
    await pool.connect(host)
    machine.freeze()
    with pytest.raises(SshConnectionError, match=r"within 0\.3 s"):
        await run(pool, host, "echo x", timeout_s=0.3)
    with pytest.raises(SshConnectionError, match=r"within 0\.3 s"):
        await run(pool, host, "echo x", timeout_s=0.3)
    machine.thaw()
    assert (await run(pool, host, "echo back")).stdout == b"back\n"
    assert names(log_records)[:2] == ["ssh.connected", "ssh.lost"]


async def test_a_black_hole_is_noticed_by_probes(machine: Sshd, host: SshHost, log_records: list[Record]) -> None:
    """Nobody has to ask: what answers no probe is lost."""
    async with AsyncExitStack() as stack:
        pool = SshPool(machine.client_key, connect_timeout_s=20.0, keepalive_interval_s=0.1, keepalive_count_max=2)
        await pool.open(stack)
        await pool.connect(host)
        machine.freeze()
        await until(lambda: names(log_records) == ["ssh.connected", "ssh.lost"])


async def test_a_host_that_says_nothing_keeps_no_other_waiting(machine: Sshd, host: SshHost, tmp_path: Path) -> None:
    """With room for one handshake, a frozen host's does not take it."""
    public = (machine.folder / "authorized_keys").read_text(encoding="utf-8")
    async with AsyncExitStack() as stack:
        pool = SshPool(machine.client_key, connect_timeout_s=20.0, max_handshakes=1)
        await pool.open(stack)
        with Sshd(tmp_path / "frozen", authorized_key=public) as other:
            other.freeze()
            silent = SshHost("i-0b", other.address, other.port, other.user, None)
            waiting = asyncio.create_task(pool.connect(silent))
            assert (await run(pool, host, "echo quick")).stdout == b"quick\n"
            assert not waiting.done()
            await pool.disconnect("i-0b")
            with pytest.raises(SshConnectionError, match="disconnected"):
                await waiting


async def test_a_host_that_never_speaks_is_given_up_in_time(machine: Sshd, host: SshHost) -> None:
    """The error says how long was waited."""
    machine.freeze()
    async with AsyncExitStack() as stack:
        pool = SshPool(machine.client_key, connect_timeout_s=0.2)
        await pool.open(stack)
        with pytest.raises(SshConnectionError, match=r"no connection within 0\.2 s"):
            await pool.connect(host)


async def test_a_host_that_refuses_is_reached_once_it_listens(pool: SshPool, machine: Sshd, host: SshHost) -> None:
    """A refusal is an error that may be tried again, and then works."""
    machine.stop_listening()
    with pytest.raises(SshConnectionError, match="refused"):
        await pool.connect(host)
    machine.start()
    assert await pool.connect(host) == machine.host_key


async def test_another_key_on_reconnect_is_never_accepted(pool: SshPool, machine: Sshd, host: SshHost) -> None:
    """What was pinned at first use counts, and the sentence says that somebody must look."""
    await pool.connect(host)
    machine.stop_listening()
    machine.change_host_key()
    machine.start()
    for _ in range(2):
        with pytest.raises(SshHostKeyError, match="another key than the pinned one"):
            await run(pool, host, 'echo >"$HOME/touched"')
    assert not (machine.home / "touched").exists()


async def test_a_pinned_key_counts_from_the_first_handshake_on(pool: SshPool, machine: Sshd, host: SshHost) -> None:
    """A pin from an earlier daemon is held against the host; the right one is let through, with any comment."""
    wrong = machine.host_key
    machine.change_host_key()
    with pytest.raises(SshHostKeyError):
        await pool.connect(replace(host, host_key=wrong))
    right = machine.host_key
    assert await pool.connect(replace(host, key="i-0b", host_key=f"{right} somebody@somewhere")) == right


async def test_a_pin_that_does_not_fit_a_kept_connection_is_an_error(
    pool: SshPool, machine: Sshd, host: SshHost
) -> None:
    """A connection made at first use is not handed to a caller that knows better."""
    await pool.connect(host)
    machine.change_host_key()
    with pytest.raises(SshHostKeyError, match="not the pinned one"):
        await run(pool, replace(host, host_key=machine.host_key), "true")


async def test_a_pinned_key_is_asked_for_among_several(machine: Sshd, host: SshHost, pool: SshPool) -> None:
    """A host with an RSA key beside the pinned one shows the pinned one, whichever is pinned."""
    other = machine.folder / "rsa"
    rsa = await asyncio.create_subprocess_exec("ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(other))
    assert await rsa.wait() == 0
    line = " ".join(other.with_suffix(".pub").read_text(encoding="utf-8").split()[:2])
    machine.stop_listening()
    machine._options["HostKey"] = f"{machine.folder / 'host_key'}\nHostKey {other}"
    machine.start()
    assert await pool.connect(replace(host, key="i-0b", host_key=line)) == line
    assert await pool.connect(replace(host, key="i-0c", host_key=machine.host_key)) == machine.host_key


async def test_a_key_that_the_host_does_not_know_is_a_matter_of_settings(host: SshHost, tmp_path: Path) -> None:
    """The sentence names the keys of the config to look at."""
    with Sshd(tmp_path / "other") as other:
        async with AsyncExitStack() as stack:
            pool = SshPool(other.client_key, connect_timeout_s=20.0)
            await pool.open(stack)
            with pytest.raises(SshAuthError, match="key_name"):
                await pool.connect(host)


async def test_nothing_of_the_daemons_user_has_a_say(
    pool: SshPool, host: SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No config file, no agent: what stands in ~/.ssh is not looked at."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host *\n  Port 1\n  User nobody\n  HostKeyAlgorithms none\n", "utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "nothing"))
    assert (await run(pool, host, "echo ours")).stdout == b"ours\n"


async def test_cancelled_commands_use_up_no_sessions(pool: SshPool, machine: Sshd, host: SshHost) -> None:
    """Twice as many as sshd's MaxSessions are cancelled while they run, and the next one is answered."""
    for number in range(20):
        up = machine.home / f"up{number}"
        running = asyncio.create_task(run(pool, host, f"echo up >{up}; sleep 30"))
        await appearance(up)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (await run(pool, host, "echo on")).stdout == b"on\n"


async def test_a_cancelled_caller_takes_nobody_elses_connection_away(pool: SshPool, host: SshHost) -> None:
    """Whoever waits for the same opening still gets it."""
    first = asyncio.create_task(pool.connect(host))
    second = asyncio.create_task(pool.connect(host))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).startswith("ssh-ed25519 ")
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_host_that_moved_is_connected_to_where_it_is(pool: SshPool, machine: Sshd, host: SshHost) -> None:
    """Another address of the same instance gets a new connection, and the pin holds."""
    await pool.connect(host)
    key = machine.host_key
    machine.stop_listening()
    machine.address = "127.0.0.1"
    machine.start()
    assert await pool.connect(replace(host, address="127.0.0.1")) == key


async def test_a_host_that_was_let_go_is_a_stranger_again(pool: SshPool, machine: Sshd, host: SshHost) -> None:
    """After `disconnect` another key may be shown: the id is not used again, but a test of yours may."""
    await pool.connect(host)
    await pool.disconnect(host.key)
    await pool.disconnect(host.key)
    machine.stop_listening()
    machine.change_host_key()
    machine.start()
    assert await pool.connect(host) == machine.host_key
