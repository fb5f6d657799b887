"""`decisec …` as a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

import msgspec

from decisec.dev.endpoint import Endpoint
from decisec.dev.leftovers import marked_processes

START_S = 60.0
STOP_S = 40.0


class Program:
    """A running `python -m decisec …`; its stderr is followed line by line."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("DECISEC_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "decisec", *arguments],
            cwd=cwd,
            env=env | {"NO_COLOR": "1", "XDG_CONFIG_HOME": str(cwd / "config")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._fresh: Queue[str] = Queue()
        self._stdout: list[str] = []
        self._readers = [
            threading.Thread(target=self._follow_stderr, daemon=True),
            threading.Thread(target=self._follow_stdout, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _follow_stderr(self) -> None:
        for line in self._process.stderr or ():
            self.lines.append(line.rstrip("\n"))
            self._fresh.put(self.lines[-1])

    def _follow_stdout(self) -> None:
        for line in self._process.stdout or ():
            self._stdout.append(line)

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return "".join(self._stdout)

    def until(self, text: str, within_s: float = START_S) -> str:
        """Wait for a line on stderr that holds `text`."""
        give_up = time.monotonic() + within_s
        while (left := give_up - time.monotonic()) > 0:
            try:
                line = self._fresh.get(timeout=left)
            except Empty:
                break
            if text in line:
                return line
        raise AssertionError(f"no line with {text!r} within {within_s} s: {self.lines}")

    def endpoint(self, state_dir: Path) -> Endpoint:
        """Wait until the stack has made itself known."""
        self.until("hypervisor: ")
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up:
            if (state_dir / "dev.json").exists():
                return msgspec.json.decode((state_dir / "dev.json").read_bytes(), type=Endpoint)
            time.sleep(0.01)
        raise AssertionError(f"no dev.json: {self.lines}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it, and to it alone."""
        self._process.send_signal(number)

    def wait(self, within_s: float = STOP_S) -> int:
        """Wait for its end; returns the exit code."""
        code = self._process.wait(within_s)
        for reader in self._readers:
            reader.join(5)
        return code

    def close(self) -> None:
        """End it by all means, and close the pipes."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def program(*arguments: str, cwd: Path, state_dir: Path) -> Iterator[Program]:
    """A program for the length of the block; nothing of its stack stays behind."""
    running = Program(*arguments, cwd=cwd)
    try:
        yield running
    finally:
        running.close()
        for process in marked_processes(str(state_dir.absolute())):
            os.kill(process.pid, signal.SIGKILL)


def gone_within(state_dir: Path, seconds: float, *, but: str = "") -> bool:
    """Whether all processes of a stack end in time, those whose command holds `but` excepted."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        left = marked_processes(str(state_dir.absolute()))
        if all(but and but in process.command for process in left):
            return True
        time.sleep(0.05)
    return False


@contextmanager
def simulated_stack(folder: Path) -> Iterator[Path]:
    """A stack of simulated VMs on `<folder>/.decisec`, where commands that are run there look."""
    state_dir = folder / ".decisec"
    with program("dev", "--driver", "simulator", cwd=folder, state_dir=state_dir) as running:
        running.endpoint(state_dir)
        yield folder
