"""Which customers of this host agree that their VMs reach each other, as far as it was heard.

What holds is on disk before it is put in force: an agent that starts while NATS is away goes by
what the last one heard, and never by more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from schemas.codec import decoder, encode
from schemas.errors import MalformedMessageError
from schemas.ids import CustomerId
from vm_agent.store import write_durably

_log = structlog.get_logger("decisec.peers")

_NOBODY: frozenset[str] = frozenset()


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file: each pair once."""

    agreed: tuple[tuple[CustomerId, CustomerId], ...] = ()


_decode: Callable[[bytes], _Kept] = decoder(_Kept)


class Agreements:
    """Pairs of customers, both of whom have VMs here.

    Args:
        path: The file.
        write: Makes a file's content durable.
    """

    def __init__(self, path: Path, write: Callable[[Path, bytes], None] = write_durably) -> None:
        self._path = path
        self._write = write
        self._agreed: dict[str, frozenset[str]] = {}
        self._kept: dict[str, frozenset[str]] = {}

    def load(self) -> None:
        """Go by what was kept. Blocks. What cannot be read holds no more: rather too few."""
        try:
            pairs = _decode(self._path.read_bytes()).agreed
        except FileNotFoundError:
            return
        except (OSError, MalformedMessageError) as error:
            _log.error("peers.not_read", path=str(self._path), error=str(error))
            return
        found: defaultdict[str, set[str]] = defaultdict(set)
        for one, other in pairs:
            found[one].add(other)
            found[other].add(one)
        self._agreed = {customer_id: frozenset(peers) for customer_id, peers in found.items()}
        self._kept = dict(self._agreed)

    def of(self, customer_id: str) -> frozenset[str]:
        """Who agrees with a customer, and it with them."""
        return self._agreed.get(customer_id, _NOBODY)

    def judged(
        self, stale: Iterable[str], said: Mapping[str, frozenset[str]], here: Set[str]
    ) -> dict[str, frozenset[str]]:
        """What changes by what was heard; `keep` makes it durable, `hold` lets it hold.

        Args:
            stale: Customers of whom something was heard, or who have come or gone.
            said: With whom each agrees, for those of whom it was heard.
            here: Customers that have VMs here.
        """
        for customer_id in (*said, *(self._kept.keys() - here)):
            # From now on it is known, or it is not.
            self._kept.pop(customer_id, None)
        changes: dict[str, frozenset[str]] = {}

        def agrees(one: str, other: str) -> bool:
            heard = said.get(one)
            return other in (self._kept.get(one, _NOBODY) if heard is None else heard)

        for one in {*stale, *(self._agreed.keys() - here)}:
            before = changes.get(one, self.of(one))
            wished = said.get(one, self._kept.get(one, _NOBODY)) if one in here else _NOBODY
            now = frozenset(
                other for other in wished if other in here and agrees(other, one) and other != one
            )
            if now == before:
                continue
            changes[one] = now
            for other in now ^ before:
                theirs = changes.get(other, self.of(other))
                changes[other] = theirs | {one} if other in now else theirs - {one}
        return changes

    def keep(self, changes: Mapping[str, frozenset[str]]) -> None:
        """Make durable what changes. Blocks. Where that fails nothing is kept: rather too few."""
        agreed = {**self._agreed, **changes}
        pairs = tuple(
            sorted((one, other) for one, peers in agreed.items() for other in peers if one < other)
        )
        try:
            self._write(self._path, encode(_Kept(agreed=pairs)))
        except OSError as error:
            _log.error("peers.not_kept", path=str(self._path), error=str(error))
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def hold(self, changes: Mapping[str, frozenset[str]]) -> None:
        """Go by what has changed."""
        for customer_id, peers in changes.items():
            if peers:
                self._agreed[customer_id] = peers
            else:
                self._agreed.pop(customer_id, None)
