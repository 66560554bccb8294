"""Many machines in one process, for the polling benchmark: asyncssh servers that answer a poll as `far_side.sh` does.

Usage: python tests/benchmarks/ssh_machines.py COUNT AUTHORIZED_KEY_FILE. Prints one line of JSON once all listen:
their addresses, their port, their host key. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sys

import asyncssh
import uvloop

_RUN_ID = re.compile(r"[0-9a-f]{32}")


async def _answer(process: asyncssh.SSHServerProcess[bytes]) -> None:
    found = _RUN_ID.search(process.command or "")
    run_id = found.group() if found else "-"
    process.stdout.write(
        f"rampd-run 1 {run_id} state=running status=- word=- rss=- log=80 more=- spot=0 problem=-\n"
        "[38;5;244m\tscore  acc  time  one more line of what a training prints, as it does\n".encode()
    )
    process.exit(0)


async def main(count: int, authorized: str) -> None:
    """Listen, say so, and serve until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    addresses = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(count)]
    port = 0
    servers = []
    for address in addresses:
        server = await asyncssh.listen(
            address,
            port,
            server_host_keys=[host_key],
            authorized_client_keys=authorized,
            process_factory=_answer,
            encoding=None,
            backlog=5,
        )
        port = port or server.get_port()
        servers.append(server)
    line = " ".join(host_key.export_public_key("openssh").decode().split()[:2])
    print(json.dumps({"addresses": addresses, "port": port, "host_key": line}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        server.close()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
