"""A program of ours in a process of its own, that tests start, stop, freeze and kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
_STOP_S = 30.0


class ServiceProcess:
    """A program that may be started again after each end, with one log for all its lives.

    As a context it is started, and killed at the end.

    Args:
        command: Program and arguments.
        log_path: What it says goes here.
        env: Its `DECISEC_*` variables; it gets no others of these.
    """

    def __init__(self, *command: str, log_path: Path, env: Mapping[str, str] | None = None) -> None:
        self.log_path = log_path
        self._command = command
        self._env = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith("DECISEC_")
            },
            **(env or {}),
        }
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    def set(self, variable: str, value: str) -> None:
        """Give the next start another variable."""
        self._env[variable] = value

    async def start(self) -> None:
        """Start the process; returns before it is ready."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self._env, cwd=ROOT, stdout=log, stderr=log
            )

    async def stop(self) -> int:
        """SIGTERM, and wait for the end; returns the exit code.

        Raises:
            TimeoutError: It does not end; it may be killed yet.
        """
        self.send(signal.SIGTERM)
        async with asyncio.timeout(_STOP_S):
            return await self.died()

    async def kill(self) -> None:
        """SIGKILL, and wait for the end. It need not run."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self.died()

    async def died(self) -> int:
        """Wait for an end that nobody need have asked for; returns the exit code."""
        code = await self._running.wait()
        self._process = None
        return code

    async def freeze(self) -> None:
        """SIGSTOP, and wait until no thread of it runs any more. SIGCONT lets it go on."""
        self.send(signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGCONT."""
        self._running.send_signal(number)

    @property
    def pid(self) -> int:
        """Of the running process."""
        return self._running.pid

    def log(self) -> str:
        """What it said so far, in all its lives."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"{' '.join(self._command)} does not run")
        return self._process


def python_module(module: str) -> tuple[str, ...]:
    """The command that runs a module."""
    return (sys.executable, "-m", module)


def settings_env(service: str, nats_url: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Variables of a service: its bus, and settings of its own by their names."""
    return {
        "DECISEC_NATS_URL": nats_url,
        **{f"DECISEC_{service}_{name}".upper(): value for name, value in settings.items()},
    }
