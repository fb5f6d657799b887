"""A VMM that repeats what it is told does not get its metadata into an error message."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest

from schemas.ids import new_id
from tests.support.hypervisors import processes_in
from vm_agent.drivers.abc import DriverError, MachinePlan
from vm_agent.drivers.firecracker import FirecrackerDriver
from vm_agent.process import VmmProcesses

SECRET = "hunter2"
PARROT = """#!{python} -S
import json, re, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[sys.argv.index("--api-sock") + 1])
server.listen()
peer, _ = server.accept()
received = b""
while True:
    while b"\\r\\n\\r\\n" not in received:
        received += peer.recv(65536) or sys.exit(0)
    head, _, received = received.partition(b"\\r\\n\\r\\n")
    length = int(re.search(rb"Content-Length: (\\d+)", head)[1])
    while len(received) < length:
        received += peer.recv(65536)
    body, received = received[:length], received[length:]
    if b" /mmds " not in head:
        peer.sendall(b"HTTP/1.1 204 \\r\\n\\r\\n")
        continue
    words = json.dumps({{"fault_message": body.decode()}}).encode()
    match "{how}":
        case "refuses":
            peer.sendall(b"HTTP/1.1 400 \\r\\nContent-Length: %d\\r\\n" % len(words))
            peer.sendall(b"\\r\\n" + words)
        case "answers garbage":
            peer.sendall(body + b"\\r\\n\\r\\n")
        case "dies":
            sys.stdout.write(body.decode())
            sys.exit(3)
"""


@pytest.mark.parametrize("how", ["refuses", "answers garbage", "dies"])
async def test_a_parrot_tells_no_secret(tmp_path: Path, how: str) -> None:
    """Neither does the traceback; and nothing of it is left."""
    parrot = tmp_path / "parrot"
    parrot.write_text(PARROT.format(python=sys.executable, how=how))
    parrot.chmod(0o755)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    driver = FirecrackerDriver(parrot, VmmProcesses())
    plan = MachinePlan(
        vm_id=new_id(),
        incarnation=1,
        vcpus=1,
        memory_mib=64,
        kernel=parrot,
        kernel_args="",
        run_dir=run_dir,
        metadata={"password": SECRET},
    )
    with pytest.raises(DriverError, match="metadata") as caught:
        await driver.create(plan)
    shown = "".join(traceback.format_exception(caught.value))
    assert "did not take the metadata" in shown
    assert SECRET not in shown
    assert not processes_in(run_dir)
    assert list(run_dir.iterdir()) == []
