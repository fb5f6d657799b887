"""`decisec flood`: the load harness of the source tree, which is no part of the package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from decisec.cli.exits import EPILOG, CommandError, Exit

_ROOT = Path(__file__).resolve().parents[2]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=EPILOG,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(flood)


def flood(context: typer.Context) -> None:
    """Flood a deployment with metrics, or `flood commands`, and check what became of all of it."""
    if not (_ROOT / "tests" / "load" / "flood").is_dir():
        raise CommandError(
            "the load harness comes with decisec's source, not with the package: "
            "run it in a checkout",
            Exit.UNREACHABLE,
            "no_harness",
        )
    os.chdir(_ROOT)
    # Replaces this process, so that signals and exit code are the harness's own.
    command = [sys.executable, "-m", "tests.load.flood", *context.args]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted
