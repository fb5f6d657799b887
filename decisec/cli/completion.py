"""`decisec completion SHELL`: what makes a shell complete command lines with the Tab key."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from decisec.cli.exits import EPILOG
from decisec.cli.output import Json, show_json

_PROGRAM = "decisec"
_VARIABLE = "_DECISEC_COMPLETE"
"""Where the script puts its question; the library's own name for it."""


class Shell(StrEnum):
    """Those that can."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(completion)


def completion(
    shell: Annotated[Shell, typer.Argument(help="Which shell.")], as_json: Json = False
) -> None:
    """Print the script that completes commands, options and names of yours in a shell.

    bash: `source <(decisec completion bash)` in ~/.bashrc. zsh: the same with zsh, after compinit,
    in ~/.zshrc. fish: `decisec completion fish > ~/.config/fish/completions/decisec.fish`. Or let
    `decisec --install-completion` do it.
    """
    # The library has no public name for what its own --show-completion prints.
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    script = get_completion_script(prog_name=_PROGRAM, complete_var=_VARIABLE, shell=shell.value)
    if as_json:
        show_json({"shell": shell.value, "script": script})
    else:
        sys.stdout.write(f"{script}\n")
