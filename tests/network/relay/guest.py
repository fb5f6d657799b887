"""A VM whose guest relays, as the suite sees it; and the Linux that does so.

It is told by datagrams from outside, which hold a frame each, and says what else comes on its
console. So one boot serves all cases, and nothing of the host but its network is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

from decisec.devkit import initramfs
from decisec.devkit.guest import ZIG
from decisec.devkit.uv import DevkitError, find_uv, run
from tests.network.cases.base import HERE, HERE_V4, Case, Step, from_outside
from tests.network.real import is_about_it
from tests.support import packets as p
from tests.support.fabric import OUTSIDE, VNET_HEADER_BYTES, Fabric

MOST_BYTES = 1400
"""What fits into a datagram, with room."""

BOOT_ARGS = {"here": str(HERE), "here4": str(HERE_V4)}
"""What the Linux that relays has to be told."""

_PORT = 57024
_GOT = b"GOT "
_NO_HEADER = bytes(VNET_HEADER_BYTES)
_SOURCES = Path(__file__).parent
_PAUSE_S = 0.001


class RelayGuest:
    """`tests.network.suite.Sender` by a guest that relays.

    Args:
        place: Where it is told from.
        console: The file that its console goes to.
    """

    def __init__(self, place: Fabric, console: Path) -> None:
        self._place = place
        self._console = console
        self._read = 0

    def send(self, frame: bytes, header: bytes = _NO_HEADER) -> None:
        """Tell it to send a frame. It has only begun on return."""
        if header != _NO_HEADER or len(frame) > MOST_BYTES:
            raise ValueError("the guest's own device writes the header, and it cannot be so long")
        order = p.udp(OUTSIDE, HERE, _PORT, _PORT, frame)
        self._place.send_from_outside(from_outside(p.ip6(OUTSIDE, HERE, p.UDP, order)))

    def received(self) -> Iterator[bytes]:
        """Frames that it has said it got, since it was asked last."""
        said = self._said()
        whole = said.rfind(b"\n") + 1
        self._read += whole
        for line in said[:whole].splitlines():
            if line.startswith(_GOT):
                yield bytes.fromhex(line.removeprefix(_GOT).decode())

    def waits(self, patience_s: float) -> bool:
        """Whether it says something in time."""
        until = monotonic() + patience_s
        while monotonic() < until:
            if b"\n" in self._said():
                return True
            sleep(_PAUSE_S)
        return False

    def _said(self) -> bytes:
        with self._console.open("rb") as console:
            console.seek(self._read)
            return console.read()


def can_be_sent(case: Case) -> bool:
    """Whether a case is about the VM that relays, and of frames that its own device can send."""
    return is_about_it(case) and all(map(_fits, case.steps))


def _fits(step: Step) -> bool:
    if step.header != _NO_HEADER or len(step.frame) > MOST_BYTES:
        return False
    if step.at != "uplink":
        return step.at == "alice 1"
    return HERE.packed in step.frame[38:54] or HERE_V4.packed in step.frame[30:34]


def linux_initrd(initrd: Path, made: Path) -> None:
    """The devkit's initial RAM disk, with the relay as what it runs.

    Raises:
        DevkitError: No compiler works.
    """
    program = made.with_name("relay")
    _compile(program)
    files = {"init": (_SOURCES / "init.sh").read_bytes(), "relay": program.read_bytes()}
    made.write_bytes(initrd.read_bytes() + initramfs.programs(files))


def _compile(program: Path) -> None:
    arguments = ["-static", "-O1", "-Wall", "-o", str(program), str(_SOURCES / "relay.c")]
    reasons = []
    for compiler in (["cc"], _zig()):
        try:
            run([*compiler, *arguments], what=f"building the relay with {compiler[0]}")
        except DevkitError as error:
            reasons.append(str(error))
        else:
            return
    raise DevkitError("; ".join(reasons))


def _zig() -> list[str]:
    zig = [*find_uv(), "tool", "run", "--from", ZIG, "python-zig", "cc"]
    return [*zig, "-target", "x86_64-linux-musl"]
