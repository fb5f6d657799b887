"""Which channel a VMM's metrics come by: a setting for a new VMM, its own for one that runs."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vm_agent.drivers.metrics_fifo import MetricsFifo
from vm_agent.drivers.metrics_file import MetricsFile
from vm_agent.drivers.metrics_lines import MetricsChannel, metrics_path

MetricsKind = Literal["file", "fifo"]

CHANNELS: Mapping[MetricsKind, type[MetricsChannel]] = {"file": MetricsFile, "fifo": MetricsFifo}


def open_metrics(folder: Path, state: Path) -> MetricsChannel:
    """The channel that a VMM was started with, to be read on from where a former agent stopped.

    A jailed VMM owns the folder and may put anything there under that name. So a link is not
    followed, and a file that has a second name is refused: it could be one of the host's.

    Args:
        folder: Where the channel was prepared.
        state: What the channel keeps for the next agent; made if missing.

    Raises:
        OSError: There is no such file, or it is neither a regular file nor a FIFO.
    """
    path = metrics_path(folder)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if found.st_nlink == 1 and stat.S_ISFIFO(found.st_mode):
        return MetricsFifo(descriptor, path, state)
    if found.st_nlink == 1 and stat.S_ISREG(found.st_mode):
        return MetricsFile(descriptor, path, state)
    os.close(descriptor)
    raise OSError(errno.EINVAL, "neither a file nor a FIFO of its own", str(path))
