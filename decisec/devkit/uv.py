"""The uv executable, which fetches what a package index carries."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_LIMIT_S = 300


class DevkitError(Exception):
    """A one-line reason, fit for whoever called the tool."""


def find_uv() -> list[str]:
    """How to call uv: the one on PATH, else the installed package's.

    Raises:
        DevkitError: There is none.
    """
    if found := shutil.which("uv"):
        return [found]
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    raise DevkitError("uv is not installed (pip install uv)")


def run(argv: Sequence[str], *, what: str, cwd: Path | None = None, limit_s: int = _LIMIT_S) -> str:
    """Run a tool to its end, quietly.

    Returns:
        What it has printed.

    Raises:
        DevkitError: It fails, with the last line of what it says, or takes over `limit_s` seconds.
    """
    try:
        done = subprocess.run(
            list(argv),
            cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DevkitError(f"{what} took more than {limit_s} s") from error
    except OSError as error:
        raise DevkitError(f"{what} failed: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise DevkitError(f"{what} failed: {lines[-1] if lines else f'exit {done.returncode}'}")
    return done.stdout
