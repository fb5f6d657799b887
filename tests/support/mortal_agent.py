"""`python -m tests.support.mortal_agent`: the agent, which dies when it is about to do a thing.

Nothing in the agent knows of this. The interpreter tells an audit hook of every file that is made
or removed, every program that is started, every socket that is connected (PEP 578), just before it
happens; these are the steps at which the agent can be killed. Their names are made of the event
and of what it is about, with ids left out. What is changed in the kernel's network is told by
`tests.support.kernel_steps`, before and after it happens, whoever asks the kernel.

Environment:
    LD_PRELOAD: What `kernel_steps.build` has made.
    DECISEC_TEST_WISH: A file. SIGUSR1 makes the agent read it: `<step>#<n>` lets it die at the n-th
        such step from then on, `*` lets it list its steps. It is removed once it is read. One
        that is there at the start is read at once.
    DECISEC_TEST_STEPS: A file that the steps are listed in.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import kernel_steps

_ALWAYS = frozenset(
    {
        "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.chown",
        "os.truncate", "subprocess.Popen", "fcntl.ioctl", "socket.connect",
    }
)  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|(?<=-)[0-9a-f]{8}\b|\d{3,}")
_PLACES = ("/sys/fs/cgroup", "/run/netns", "/proc/sys/net")
_TUN = ord("T")
_KEEPS_TIME = ("/checkpoint/", "/spool/")


class Death:
    """Waits for its moment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._wish_file = Path(environment["DECISEC_TEST_WISH"])
        self._steps_file = environment["DECISEC_TEST_STEPS"]
        self._data_dir = environment["DECISEC_AGENT_DATA_DIR"]
        self._wish: tuple[str, int] | None = None
        self._listing = -1
        self._seen: Counter[str] = Counter()

    def arm(self, _number: int, _frame: Any) -> None:
        """Read what is wished."""
        text = self._wish_file.read_text().strip()
        self._wish_file.unlink()
        self._seen.clear()
        if text == "*":
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._listing = os.open(self._steps_file, flags, 0o600)
        else:
            step, _, times = text.rpartition("#")
            self._wish = (step, int(times))

    def arm_if_wished(self) -> None:
        """Begin at once if there is a wish already: to die in the start."""
        if self._wish_file.exists():
            self.arm(0, None)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See `sys.addaudithook`."""
        if self._wish is None and self._listing < 0:
            return
        step = self._step(event, arguments)
        if step is not None:
            self.take(step)

    def take(self, step: str) -> None:
        """Something is about to happen, or has just happened."""
        if self._wish is None and self._listing < 0:
            return
        self._seen[step] += 1
        if self._listing >= 0:
            os.write(self._listing, f"{step}\n".encode())
        if self._wish == (step, self._seen[step]):
            signal.raise_signal(signal.SIGKILL)

    def _step(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITES or not isinstance(path, str):
                return None
            if not path.startswith((self._data_dir, *_PLACES)):
                return None
        elif event not in _ALWAYS:
            return None
        words = [self._short(word) for word in arguments if isinstance(word, (str, bytes, Path))]
        if event == "subprocess.Popen":
            words = [Path(word).name for word in arguments[1] if "/" in str(word)][-2:]
        elif event == "socket.connect":
            words = [] if isinstance(arguments[1], tuple) else ["unix"]
            if not words:
                return None
        elif event == "fcntl.ioctl":
            if arguments[1] >> 8 & 0xFF == _TUN:
                return None  # `kernel_steps` tells of it
            words = [hex(arguments[1])]
        if any(word in " ".join(words) for word in _KEEPS_TIME):
            return None
        return " ".join([event, *words])

    def _short(self, word: str | bytes | Path) -> str:
        text = os.fsdecode(word).replace(self._data_dir, "~").replace("/sys/fs/cgroup", "cgroup")
        return _IDS.sub("_", text)


def main() -> int:
    """Run the agent."""
    from runtime.service import run
    from vm_agent.app import main as agent
    from vm_agent.settings import AgentSettings

    death = Death(os.environ)
    signal.signal(signal.SIGUSR1, death.arm)
    sys.addaudithook(death.hook)
    os.environ.pop("LD_PRELOAD")  # nobody else is to be watched
    _teller = kernel_steps.watch(death.take)
    death.arm_if_wished()
    return run("agent", AgentSettings, agent)


if __name__ == "__main__":
    sys.exit(main())
