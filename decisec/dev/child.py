"""One process of the stack: in a process group of its own, on a leash, with a log.

The group keeps a terminal's Ctrl-C away from the child, so that only the supervisor gets it
and stops the children in order. The leash is PR_SET_PDEATHSIG (prctl(2)): the kernel sends the
child SIGTERM when the supervisor is gone, SIGKILL included.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from decisec.dev.errors import StackError

TAIL_LINES = 20
_PR_SET_PDEATHSIG = 1
_KILL_WAIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to start.

    Attributes:
        env: The whole environment.
        log: File for stdout and stderr; the former one is kept as `<log>.1`.
        grace_s: How long it may take to end after SIGTERM.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    grace_s: float = 10.0
    cwd: Path | None = field(default=None)


class Child:
    """A running child, reaped by whoever waits for `exited`.

    Raises:
        StackError: On construction: its program cannot be started.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.stopping = False
        self._process = _spawn(spec)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def name(self) -> str:
        """What people call it."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """Its process id, which is its group's as well."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.returncode

    async def exited(self) -> int:
        """Wait for its end; returns the exit code."""
        await self._ended.wait()
        return self._process.returncode or 0

    async def stop(self, hurry: asyncio.Event, report: Callable[[str], None]) -> None:
        """SIGTERM, a wait of `grace_s` at most, then SIGKILL to the whole group with a word.

        Args:
            hurry: Once set, the wait is over.
            report: Takes the word.
        """
        self.stopping = True
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)
            if not await self._ended_within(self.spec.grace_s, hurry):
                why = "hurried" if hurry.is_set() else f"still there after {self.spec.grace_s:g} s"
                report(f"{self.name}: {why}, killed")
        # A member of the group may outlive its leader; signalling an empty group is no error.
        self.kill()
        async with asyncio.timeout(_KILL_WAIT_S):
            await self._ended.wait()

    def kill(self) -> None:
        """SIGKILL to the group, at once; harmless if nothing of it is left."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def _ended_within(self, seconds: float, hurry: asyncio.Event) -> bool:
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(self._ended.wait(), name=f"{self.name}-ended")
            hurried = group.create_task(hurry.wait(), name=f"{self.name}-hurried")
            await asyncio.wait(
                {ended, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            hurried.cancel()
        return self._ended.is_set()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self._ended.set()

    def log_tail(self, lines: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines of its log."""
        with self.spec.log.open(errors="replace") as stream:
            return tuple(line.rstrip("\n") for line in deque(stream, maxlen=lines))


def _spawn(spec: ChildSpec) -> subprocess.Popen[bytes]:
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    if spec.log.exists():
        spec.log.replace(spec.log.with_name(f"{spec.log.name}.1"))
    with spec.log.open("wb") as log:
        try:
            return subprocess.Popen(
                spec.argv,
                env=dict(spec.env),
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_leash(),
            )
        except OSError as error:
            raise StackError(
                f"cannot start {spec.name} ({spec.argv[0]}): {error.strerror}"
            ) from error


def _leash() -> Callable[[], None]:
    # Loaded here: between fork and exec nothing but the calls themselves may happen.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    supervisor = os.getpid()

    def fasten() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(1)  # it died before the leash was on

    return fasten
