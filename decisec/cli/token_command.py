"""Asks a program for the token: a password store, or an identity provider's own client."""

from __future__ import annotations

import shlex
import subprocess

from decisec.cli.exits import CommandError, Exit

_WITHIN_S = 60.0
"""Long enough to unlock something by hand."""
_HASTY_S = 2.0


def token_of(command_line: str, *, hasty: bool) -> str:
    """The first word that the program prints. No shell is between.

    Args:
        command_line: The program and its arguments.
        hasty: Let it ask nobody and say nothing, and give up soon.

    Raises:
        CommandError: It cannot be run, fails, or prints nothing. Names the program, no argument:
            one of these may be a secret.
    """
    try:
        command = shlex.split(command_line)
    except ValueError as error:
        raise _refused("the context's token command", f"is no command line: {error}") from error
    if not command:
        raise _refused("the context's token command", "is empty")
    name = f"the context's token command ({command[0]})"
    within_s = _HASTY_S if hasty else _WITHIN_S
    # What it has to say or to ask goes to the terminal itself, if there may be any of that.
    others = subprocess.DEVNULL if hasty else None
    try:
        done = subprocess.run(
            command,
            stdin=others,
            stdout=subprocess.PIPE,
            stderr=others,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refused(name, f"has not answered within {within_s:g} s") from None
    except OSError as error:
        raise _refused(name, f"cannot be run: {error.strerror}") from None
    if done.returncode:
        raise _refused(name, f"has failed with exit code {done.returncode}")
    words = done.stdout.decode(errors="replace").split()
    if not words:
        raise _refused(name, "has printed nothing")
    return words[0]


def _refused(name: str, why: str) -> CommandError:
    return CommandError(f"{name} {why}", Exit.DENIED, "no_token")
