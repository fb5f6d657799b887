"""Numbers that are given out once: an agent that is killed, or started anew, goes on behind them.

The file says from where on no number was given out. It is moved on by a block at a time, before the
first of the block is used, so a crash loses some numbers and never gives one out twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from runtime.errors import FatalError
from schemas.codec import decoder, encode
from schemas.errors import MalformedMessageError
from vm_agent.store import write_durably

_SLOTS_AT_ONCE = 64
_TENANTS_AT_ONCE = 16
FIRST_TENANT = 1 << 20
"""What is below marks packets in other ways."""


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """Where each kind goes on."""

    slot: int
    tenant: int = FIRST_TENANT
    network: int = 0
    ipv4: int = 0


_decode: Callable[[bytes], _State] = decoder(_State)

_AT_ONCE = {"slot": _SLOTS_AT_ONCE, "tenant": _TENANTS_AT_ONCE, "network": 1, "ipv4": 1}
KINDS = tuple(_AT_ONCE)


class Numbers:
    """Ever growing numbers of four kinds. `take` blocks now and then, for a write to disk.

    A fresh file begins its slots anywhere, so that a host whose data directory is lost does not
    give out the addresses of before.

    Args:
        path: The file.
        write: Makes a file's content durable.

    Raises:
        FatalError: The file is damaged.
    """

    def __init__(self, path: Path, write: Callable[[Path, bytes], None] = write_durably) -> None:
        self._path = path
        self._write = write
        try:
            self._kept = _decode(path.read_bytes())
        except FileNotFoundError:
            self._kept = _State(slot=secrets.randbelow(1 << 31))
        except MalformedMessageError as error:
            raise FatalError(
                f"{path}: {error}; move it away: addresses of deleted VMs may then be given out "
                "again at once"
            ) from error
        self._next = {kind: int(getattr(self._kept, kind)) for kind in KINDS}

    def take(self, kind: str) -> int:
        """The next number of a kind; none that any run has taken."""
        number = self._next[kind]
        if number >= getattr(self._kept, kind):
            kept = msgspec.structs.replace(self._kept, **{kind: number + _AT_ONCE[kind]})
            self._write(self._path, encode(kept))
            self._kept = kept
        self._next[kind] = number + 1
        return number
