"""Writes frames to taps as fast as it can, of the kind that it was told last.

Each line of its input is a descriptor and a kind; it says how many frames it has sent so far, makes
new ones, says `sending`, and does until the next line comes or the input ends.

    python -m tests.network.flood.sender
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress

from tests.network.flood.frames import frames
from tests.support.fabric import VNET_HEADER_BYTES


def main() -> None:
    """Do as told until there is no more."""
    with suppress(OSError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sent = 0
    told = os.fdopen(0, "rb", buffering=0)  # select sees all that was not read yet
    while line := told.readline():
        number, _, kind = line.decode().strip().partition(" ")
        _say(sent)
        if not kind:
            continue
        sent = 0
        ready = [bytes(VNET_HEADER_BYTES) + frame for frame in frames(kind)]
        _say("sending")
        descriptor = int(number)
        while not select.select([0], [], [], 0)[0]:
            for frame in ready:
                os.write(descriptor, frame)
            sent += len(ready)


def _say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
