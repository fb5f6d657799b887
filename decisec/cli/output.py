"""Where output goes: results to stdout, everything else to stderr.

With `--json` stdout holds exactly one JSON document, and an error is a JSON problem on stderr.
Commands that follow something print a document per line instead.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from decisec.cli.exits import Failure

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout.", show_default=False)
]


_NO_LIMIT = 10_000
"""Columns: more than any table of ours is wide."""


def console(*, stderr: bool = False) -> Console:
    """A terminal: Rich leaves out colour where NO_COLOR is set or none is wanted."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=not sys.stdout.isatty())


def show(renderable: RenderableType) -> None:
    """Print a result for people."""
    from rich.table import Table

    terminal = console()
    if isinstance(renderable, Table) and not terminal.is_terminal:
        # A pipe has no width: nothing is cut off there.
        terminal.width = _NO_LIMIT
        terminal.width = terminal.measure(renderable).maximum
    terminal.print(renderable)


def show_json(document: Any) -> None:
    """Print a result for programs."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    sys.stdout.buffer.flush()


def show_line(document: Any) -> None:
    """Print one of many results for programs: a line each, since they come as time goes on."""
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    sys.stdout.buffer.flush()


def show_text(line: str) -> None:
    """Print one line as it is, with no markup and never cut off."""
    output = sys.stdout
    output.flush()
    output.buffer.write(f"{line}\n".encode(output.encoding, "replace"))
    output.buffer.flush()


def say(line: str) -> None:
    """Tell a person of progress; never part of the result."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def tell(failure: Failure, *, as_json: bool) -> None:
    """Tell of an error."""
    if as_json:
        problem = {
            "type": f"urn:decisec:problem:{failure.kind}",
            "title": failure.kind.replace("_", " "),
            "status": failure.status,
            "code": failure.kind,
            "detail": failure.message,
            "exit_code": int(failure.code),
        }
        sys.stderr.write(msgspec.json.encode(problem).decode() + "\n")
    else:
        sys.stderr.write(f"error: {failure.message}\n")
