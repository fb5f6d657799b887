"""The server that runs by a configuration: tried before it is used, and made to use it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import httpx
import msgspec

from runtime.errors import FatalError, TransientError

_TRY_WITHIN_S = 30.0
_ASK_WITHIN_S = 20.0
_RELOADED_WITHIN_S = 60.0
"""Each of two times; with 1000 hosts it takes 5 to 8 s, and holds nobody up."""


class _State(msgspec.Struct, frozen=True):
    config_load_time: Annotated[str, msgspec.Meta(min_length=1)]


def try_out(config: Path) -> None:
    """Have nats-server check a configuration, if there is a nats-server on this machine.

    Raises:
        FatalError: It would not take it.
    """
    beside = Path(sys.executable).parent / "nats-server"
    binary = str(beside) if beside.exists() else shutil.which("nats-server")
    if binary is None:
        return
    tried = subprocess.run(
        (binary, "-t", "-c", str(config)),
        capture_output=True, text=True, timeout=_TRY_WITHIN_S, check=False,
    )  # fmt: skip
    if tried.returncode:
        said = (tried.stderr or tried.stdout).strip().splitlines()
        raise FatalError(f"nats-server refuses {config}: {said[-1] if said else 'no reason given'}")


def process_of(pid_file: Path) -> int | None:
    """The server that runs by a configuration on this machine."""
    try:
        pid = int(pid_file.read_text().strip())
        os.kill(pid, 0)
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return pid if name.startswith("nats-server") else None


def reload(pid: int, monitor: str) -> None:
    """Make a server read its configuration again, and return once it goes by it.

    Args:
        pid: Its process.
        monitor: Where it tells of itself, `host:port`.

    Raises:
        TransientError: It does not say that it does; its log says why.
    """
    # A new account is reached from its own side only after the second time (2.15).
    for _ in range(2):
        _reload_once(pid, monitor)


def _reload_once(pid: int, monitor: str) -> None:
    before = _loaded(monitor)
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise TransientError(f"nats-server {pid} takes no signal: {error.strerror}") from error
    until_s = time.monotonic() + _RELOADED_WITHIN_S
    while _loaded(monitor) == before:
        if time.monotonic() > until_s:
            raise TransientError(
                f"nats-server {pid} goes on with its old configuration; its log says why"
            )
        time.sleep(0.05)


def _loaded(monitor: str) -> str:
    try:
        answer = httpx.get(f"http://{monitor}/varz", timeout=_ASK_WITHIN_S, trust_env=False)
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=_State).config_load_time
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        raise TransientError(f"nats-server does not answer on {monitor}: {error}") from error
