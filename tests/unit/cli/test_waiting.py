"""Waiting: what a terminal shows meanwhile, and the exit code that tells of the outcome."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from decisec.cli.exits import Exit
from schemas.api import OperationView, Problem, VmAndOperation, VmView
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.vms import VmSpec, VmState
from tests.support.shell import Done, Shell
from tests.support.stub_api import Asked, StubApi

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VM = new_id()
OPERATION = new_id()


@pytest.fixture
def shell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell(tmp_path, capfd, monkeypatch)


def operation(status: OperationStatus, code: ErrorCode | None = None) -> OperationView:
    return OperationView(
        operation_id=OPERATION, vm_id=VM, verb="boot", status=status, created_at=NOW, deadline=NOW,
        state=VmState.RUNNING if status is OperationStatus.SUCCEEDED else None,
        error=ErrorInfo(code=code, message="it burns") if code else None,
    )  # fmt: skip


def view() -> VmView:
    return VmView(
        vm_id=VM, customer_id="acme", name="web", state=VmState.CREATED,
        spec=VmSpec(image="tiny"), host_id="h1", created_at=NOW,
    )  # fmt: skip


@contextmanager
def api(*ends: OperationView) -> Iterator[StubApi]:
    """One that accepts everything, and then tells of one state after the other, the last ever."""
    left = list(ends)

    def answer(asked: Asked) -> tuple[int, object]:
        if asked.method == "GET" and asked.path == f"/v1/operations/{OPERATION}":
            return 200, left.pop(0) if len(left) > 1 else left[0]
        if asked.method == "GET":
            return 200, view()
        return 202, VmAndOperation(vm=view(), operation=operation(OperationStatus.PENDING))

    with StubApi(answer).serving() as found:
        yield found


def at(api: StubApi) -> dict[str, str]:
    return {"DECISEC_API_URL": api.url, "DECISEC_TOKEN": "t"}


def test_it_waits_beyond_what_the_api_itself_does(shell: Shell) -> None:
    """First by the API, then by looking; the state at the end is shown."""
    running, done = OperationStatus.RUNNING, OperationStatus.SUCCEEDED
    with api(operation(running), operation(running), operation(done)) as there:
        found = shell("vm", "boot", str(VM), "--wait", "--timeout", "600", **at(there))
        assert (found.code, found.err) == (0, "")
        assert found.out == f"boot done: VM {VM} web is running\n"
        assert there.asked[0].prefer == "wait=60"
        assert len(there.asked) == 4


def test_without_waiting_it_is_accepted(shell: Shell) -> None:
    """One request, no preference."""
    with api(operation(OperationStatus.PENDING)) as there:
        found = shell("vm", "boot", str(VM), "--no-wait", **at(there))
        assert found.code == 0
        assert f"operation {OPERATION} is pending" in found.out
        assert [asked.prefer for asked in there.asked] == [""]


@pytest.mark.parametrize(
    "command",
    [
        ["vm", "boot", str(VM)],
        ["vm", "shutdown", str(VM), "--grace", "0"],
        ["vm", "delete", str(VM)],
        ["vm", "create", "--template", "minimal"],
        ["vm", "snapshot", str(VM)],
        ["snapshot", "rm", str(OPERATION)],
        ["operation", "wait", str(OPERATION)],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_what_is_not_done_in_time_has_a_code_of_its_own(shell: Shell, command: list[str]) -> None:
    """And the words say how to go on; a program finds them as a problem."""
    with api(operation(OperationStatus.RUNNING)) as there:
        late = shell(*command, "--timeout", "0", **at(there))
        assert (late.code, late.out) == (Exit.NOT_DONE, "")
        assert f"decisec operation wait {OPERATION}" in late.err
        late = shell(*command, "--timeout", "0", "--json", **at(there))
        assert late.problem["code"] == "not_done"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (ErrorCode.HYPERVISOR_FAILED, Exit.FAILED),
        (ErrorCode.NO_CAPACITY, Exit.UNREACHABLE),
        (ErrorCode.UNSUPPORTED, Exit.USAGE),
        (ErrorCode.NOT_FOUND, Exit.NOT_FOUND),
    ],
)
def test_a_failure_is_the_exit_code(shell: Shell, code: ErrorCode, exit_code: Exit) -> None:
    """The same one, whether the API had waited for it or the command did."""
    with api(operation(OperationStatus.FAILED, code)) as there:
        for command in (["vm", "boot", str(VM)], ["operation", "wait", str(OPERATION)]):
            failed = shell(*command, **at(there))
            assert (failed.code, failed.out) == (exit_code, "")
            assert "it burns" in failed.err
            assert shell(*command, "--json", **at(there)).problem["code"] == code
        # To look at it is no failure.
        assert shell("operation", "get", str(OPERATION), **at(there)).code == 0


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Done]) -> tuple[Done, str]:
    """What a command's stderr shows where it is a real terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm")
        done = run()
        terminal.flush()
    seen = b""
    with os.fdopen(ours, "rb", buffering=0) as reader:
        try:
            while piece := reader.read(4096):
                seen += piece
        except OSError:
            pass  # EIO: how a terminal ends whose other side is closed
    return done, seen.decode()


def test_a_terminal_shows_what_is_waited_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the result; with --json, and where nobody waits, nothing."""
    ends = operation(OperationStatus.RUNNING), operation(OperationStatus.SUCCEEDED)
    for options, shown in (((), True), (("--json",), False), (("--no-wait",), False)):
        with api(*ends) as there:
            environment = at(there)
            done, seen = on_a_terminal(
                monkeypatch,
                lambda options=options, environment=environment: shell(  # type: ignore[misc]
                    "vm", "boot", str(VM), *options, **environment
                ),
            )
        assert done.code == 0
        assert done.out
        assert (f"boot {VM}" in seen) is shown
        if not shown:
            assert seen == ""


def test_a_refusal_while_waiting_is_told_after_the_progress(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of progress is gone by then."""
    body = Problem(type="t", title="t", status=409, code="conflict", detail="busy")
    with StubApi(lambda _: (409, body)).serving() as there:
        environment = at(there)
        done, seen = on_a_terminal(monkeypatch, lambda: shell("vm", "boot", str(VM), **environment))
    assert (done.code, done.out) == (Exit.FAILED, "")
    assert seen.endswith("error: busy\r\n")
