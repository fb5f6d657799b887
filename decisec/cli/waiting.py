"""Waiting for what was asked for: how long, what is shown meanwhile, and what comes of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from decisec.cli.exits import CommandError, Exit
from decisec.cli.output import console, say, show, show_json

if TYPE_CHECKING:
    from decisec.sdk import Client
    from schemas.api import OperationView, VmAndOperation

_AT_ONCE_S = 60.0
"""As long as the API itself waits, at most."""

Wait = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Return once it is done, with its outcome as exit code, or once it is accepted.",
    ),
]
Timeout = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="With --wait: so long at most.")
]
TIMEOUT_S = 60.0


def carry_out(
    client: Client,
    words: str,
    act: Callable[[float], VmAndOperation],
    *,
    wait: bool,
    timeout_s: float,
    as_json: bool,
) -> VmAndOperation:
    """Ask for something, wait for its end, and say what it has come to.

    Args:
        client: Of the API.
        words: What is being done, for a terminal.
        act: Asks for it; takes how long the API is to wait.
        wait: Whether to wait.
        timeout_s: How long, at most.
        as_json: The result is for programs, and so nothing is shown meanwhile.

    Raises:
        CommandError: It is not done in time.
        ApiError: The API refused, or it failed while the API waited.
        OperationFailedError: It failed later.
    """
    from schemas.hosts import OperationStatus

    begun_s = time.monotonic()
    with progress(words, quiet=as_json or not wait):
        done = act(min(timeout_s, _AT_ONCE_S) if wait else 0.0)
        if wait and done.operation.status is not OperationStatus.SUCCEEDED:
            left_s = max(0.0, begun_s + timeout_s - time.monotonic())
            operation = await_operation(client, done.operation, left_s)
            done = _with(done, operation)
    report(done, as_json)
    return done


def await_operation(client: Client, operation: OperationView, timeout_s: float) -> OperationView:
    """The operation at its end.

    Raises:
        CommandError: It has not ended within `timeout_s`.
        OperationFailedError: It has failed.
    """
    try:
        return client.wait_operation(operation.operation_id, timeout_s=timeout_s)
    except TimeoutError as error:
        raise CommandError(
            f"{operation.verb} of VM {operation.vm_id} is not done yet; it goes on: "
            f"`decisec operation wait {operation.operation_id}`",
            Exit.NOT_DONE,
            "not_done",
        ) from error


@contextmanager
def progress(words: str, *, quiet: bool) -> Iterator[None]:
    """Show on a terminal that something is being waited for, and how long already."""
    if quiet or not sys.stderr.isatty():
        with _told_when_interrupted(quiet):
            yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        _told_when_interrupted(quiet),
        Progress(*columns, console=console(stderr=True), transient=True) as bar,
    ):
        bar.add_task(words.replace("[", r"\["), total=None)
        yield


@contextmanager
def _told_when_interrupted(quiet: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if not quiet:
            say("what was accepted goes on: `decisec operation ls` tells")
        raise


def report(done: VmAndOperation, as_json: bool) -> None:
    """Say what a mutation has come to."""
    from schemas.hosts import OperationStatus

    if as_json:
        show_json(done)
        return
    vm, operation = done.vm, done.operation
    if operation.status is OperationStatus.SUCCEEDED:
        state = operation.state or vm.state
        show(f"{operation.verb} done: VM {vm.vm_id} {vm.name} is {state}".replace("  ", " "))
    else:
        show(
            f"{operation.verb} accepted: VM {vm.vm_id}, operation {operation.operation_id} is "
            f"{operation.status}"
        )


def _with(done: VmAndOperation, operation: OperationView) -> VmAndOperation:
    import msgspec

    vm = msgspec.structs.replace(done.vm, state=operation.state or done.vm.state)
    return msgspec.structs.replace(done, vm=vm, operation=operation)
