"""Which context a command goes by, if any: `--context`, `DECISEC_CONTEXT`, or the chosen one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from decisec.cli.context_file import Context

VARIABLE = "DECISEC_CONTEXT"
DEFAULT_STATE = Path(".decisec")
_ASKS = frozenset({"api_url", "nats_url"})
"""Parameters of commands that talk to somebody."""

_by_option: ContextVar[str] = ContextVar("context_option", default="")


@contextmanager
def none_yet() -> Iterator[None]:
    """One command line: what it chooses ends with the block."""
    token = _by_option.set("")
    try:
        yield
    finally:
        _by_option.reset(token)


def by_option() -> str:
    """The name that `--context` gave on this command line."""
    return _by_option.get()


def context(state_dir: Path) -> tuple[str, Context] | None:
    """The context to go by, with its name; None where a state directory goes before it.

    Raises:
        CommandError: There is none of the name that was given.
    """
    from decisec.cli.context_file import read

    if state_dir != DEFAULT_STATE:
        return None
    asked = by_option() or os.environ.get(VARIABLE, "")
    known = read()
    name = asked or known.current
    return (name, known.named(name)) if name else None


def unless_context(context: typer.Context, param: typer.CallbackParam, value: str) -> str:
    """An option's value: a variable's counts for nothing beside `--context`."""
    return "" if by_option() and _from_variable(context, param) else value


def unless_context_or_default(
    context: typer.Context, param: typer.CallbackParam, value: Path
) -> Path:
    """A state directory: absolute if somebody named it, DEFAULT_STATE else."""
    if _is_default(context, param):
        return DEFAULT_STATE
    if _from_variable(context, param) and (by_option() or os.environ.get(VARIABLE)):
        return DEFAULT_STATE
    if by_option():
        raise typer.BadParameter("a state directory or a context, not both")
    return value.absolute()


def add_option(command: Any) -> None:
    """Give `--context` to each command below this one that talks to somebody, and to itself."""
    option = typer.main.get_command(_probe).params[0]
    stack = [command]
    command.params.append(option)
    while stack:
        for found in getattr(stack.pop(), "commands", {}).values():
            stack.append(found)
            if any(param.name in _ASKS for param in found.params):
                found.params.append(option)


def _from_variable(context: typer.Context, param: typer.CallbackParam) -> bool:
    return _source(context, param) == "ENVIRONMENT"


def _is_default(context: typer.Context, param: typer.CallbackParam) -> bool:
    return _source(context, param) == "DEFAULT"


def _source(context: typer.Context, param: typer.CallbackParam) -> str:
    source = context.get_parameter_source(param.name or "")
    return source.name if source else "DEFAULT"


def _choose(value: str) -> str:
    if value:
        _by_option.set(value)
    return value


def _names(incomplete: str) -> list[str]:
    from decisec.cli.completions import context_names

    return context_names(incomplete)


_probe = typer.Typer(add_completion=False)


@_probe.command()
def _carry(
    context: Annotated[
        str,
        typer.Option(
            "--context",
            metavar="NAME",
            help="Go where this context says; DECISEC_CONTEXT does so for all commands.",
            show_default=False,
            is_eager=True,
            expose_value=False,
            callback=_choose,
            autocompletion=_names,
        ),
    ] = "",
) -> None:
    """Never called: it carries the option."""
