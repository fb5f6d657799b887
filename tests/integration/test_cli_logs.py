"""`decisec vm logs` against a running stack: to a pipe, to a terminal, and followed."""

from __future__ import annotations

import base64
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from decisec.cli.exits import Exit
from tests.support.dev_stack import START_S, Program, program, simulated_stack
from tests.support.shell import Shell

ODD = b"\x1b]0;owned\x07\x1b[31mr\xc3\xa9d\x1b[0m\x00\xff\n"
"""What a hostile guest prints."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where a stack of simulated VMs runs on `.decisec`: commands look there."""
    with simulated_stack(tmp_path_factory.mktemp("cli")) as folder:
        yield folder


@pytest.fixture
def shell(stack: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell beside the stack."""
    return Shell(stack, capfd, monkeypatch)


@pytest.fixture
def vm(shell: Shell) -> Iterator[str]:
    """A running VM named `web`, deleted afterwards."""
    vm_id: str = shell("vm", "create", "--name", "web", "--boot", "--json").json["vm"]["vm_id"]
    yield vm_id
    assert shell("vm", "delete", vm_id).code in (Exit.OK, Exit.NOT_FOUND)


@pytest.fixture
def console(stack: Path, vm: str) -> Path:
    """Where the VM's guest prints."""
    (found,) = (stack / ".decisec").rglob(f"{vm}.log")
    return found


def print_on(console: Path, data: bytes) -> None:
    with console.open("ab") as file:
        file.write(data)


def until(says: Program, text: str, times: int) -> None:
    """Wait until a program has printed a text so many times."""
    give_up = time.monotonic() + START_S
    while says.stdout.count(text) < times:
        assert time.monotonic() < give_up, says.stdout
        time.sleep(0.02)


@contextmanager
def following(stack: Path, *options: str) -> Iterator[Program]:
    """`vm logs web --follow` for the length of the block."""
    # A state directory of its own: what runs on the stack's is not this program's to end.
    with program(
        *("vm", "logs", "web", "--follow", *options), cwd=stack, state_dir=stack / "none"
    ) as running:
        yield running


def test_logs_are_there_after_the_vm_was_shut_down_and_restarted(shell: Shell, vm: str) -> None:
    """By name or id; each start has printed READY, each shutdown BYE."""
    assert shell("vm", "logs", "web").out == "READY\n"
    shell("vm", "shutdown", vm)
    assert shell("vm", "logs", vm).out == "READY\nBYE\n"
    shell("vm", "boot", vm)
    assert shell("vm", "logs", vm).out == "READY\nBYE\nREADY\n"
    document = shell("vm", "logs", vm, "--json").json
    assert base64.b64decode(document.pop("data")) == b"READY\nBYE\nREADY\n"
    assert document == {"vm_id": vm, "offset": 0, "next_offset": 16, "lost_bytes": 0}


def test_the_last_lines_are_found_however_far_back_they_begin(shell: Shell, console: Path) -> None:
    """Over several chunks, with and without a last newline; more lines than there are is all."""
    lines = [f"{number:03d} " + "x" * 3000 for number in range(100)]
    print_on(console, "\n".join(lines).encode())
    for count in (1, 2, 50, 100):
        assert shell("vm", "logs", "web", "--tail", str(count)).out == "\n".join(lines[-count:])
    print_on(console, b"\n")
    assert shell("vm", "logs", "web", "--tail", "2").out == "\n".join([*lines[-2:], ""])
    assert shell("vm", "logs", "web", "--tail", "0").out == ""
    everything = "\n".join(["READY", *lines, ""])
    assert shell("vm", "logs", "web", "--tail", "102").out == everything
    assert shell("vm", "logs", "web").out == everything


def test_what_was_dropped_is_told_beside_what_is_left(shell: Shell, console: Path) -> None:
    """On stderr; the last lines alone need no such word."""
    print_on(console, b"x" * (3 * 1024 * 1024) + b"\nend\n")
    give_up = time.monotonic() + START_S
    while console.stat().st_size > 2 * 1024 * 1024:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    done = shell("vm", "logs", "web")
    dropped = len("READY\n") + 3 * 1024 * 1024 + len("\nend\n") - len(done.out)
    assert len(done.out) == 1024 * 1024
    assert done.err == f"… {dropped} bytes were dropped\n"
    tail = shell("vm", "logs", "web", "--tail", "1")
    assert (tail.out, tail.err) == ("end\n", "")
    assert shell("vm", "logs", "web", "--json").json["lost_bytes"] == dropped


def test_a_guest_cannot_control_the_terminal(stack: Path, console: Path) -> None:
    """A terminal gets text; a pipe gets the bytes as they are."""
    print_on(console, ODD)
    env = {k: v for k, v in os.environ.items() if not k.startswith("DECISEC_")}
    command = [sys.executable, "-m", "decisec", "vm", "logs", "web"]
    piped = subprocess.run(command, cwd=stack, env=env, capture_output=True, check=True, timeout=60)
    assert piped.stdout == b"READY\n" + ODD
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            command, cwd=stack, env=env | {"PYTHONUTF8": "1"}, stdout=theirs, check=True, timeout=60
        )
        waiting = int.from_bytes(fcntl.ioctl(ours, termios.FIONREAD, b"\0" * 4), sys.byteorder)
        shown = os.read(ours, waiting)
    finally:
        os.close(ours)
        os.close(theirs)
    assert shown.decode() == "READY\r\nréd\ufffd\r\n"


def test_who_follows_sees_a_reboot_and_the_end(stack: Path, shell: Shell, vm: str) -> None:
    """The second READY comes by itself, and the deletion ends it."""
    with following(stack) as running:
        until(running, "READY", 1)
        assert shell("vm", "reboot", vm).code == 0
        until(running, "READY", 2)
        assert shell("vm", "delete", vm).code == 0
        assert running.wait() == Exit.OK
        assert running.stdout.startswith("READY\nBYE\nREADY\n")
        assert running.lines == ["the VM is deleted"]


@pytest.mark.usefixtures("vm")
def test_ctrl_c_ends_who_follows(stack: Path, console: Path) -> None:
    """With the code of an interrupt, and without a word; `--tail` says where it begins."""
    with following(stack, "--tail", "0") as running:
        give_up = time.monotonic() + START_S
        while not running.stdout:
            assert time.monotonic() < give_up
            print_on(console, b"tick\n")
            time.sleep(0.05)
        running.signal(signal.SIGINT)
        assert running.wait() == Exit.INTERRUPTED
        assert "READY" not in running.stdout
        assert running.lines == []


def test_what_cannot_be_read_says_why(shell: Shell, vm: str) -> None:
    """Unknown and foreign VMs, and options that do not go together."""
    assert shell("vm", "logs", "nobody").code == Exit.NOT_FOUND
    token = shell("token", "--customer", "globex").out.strip()
    foreign = shell("vm", "logs", vm, "--json", DECISEC_TOKEN=token)
    assert (foreign.code, foreign.problem["status"]) == (Exit.NOT_FOUND, 404)
    both = shell("vm", "logs", vm, "--json", "--follow")
    assert (both.code, both.problem["code"]) == (Exit.USAGE, "usage")
    assert shell("vm", "logs", vm, "--tail", "-1").code == Exit.USAGE
