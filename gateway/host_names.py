"""What customers are told instead of a host's name.

Where things are is the operator's matter: names of hosts tell how many there are, how they are
named and filled, and who else is there. What a customer may know is which of its VMs share a host.
So a host has another name for each customer: a hash under a secret that all gateways share. It is
the same at all times and through all gateways, and says nothing else. Operators see names.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Iterable
from functools import lru_cache

from gateway.auth import Principal, Scope
from gateway.event_ids import shared_secret
from runtime.bus import Bus
from runtime.retry import forever
from schemas.vms import VmRecord

_KEY = "host-names"
_BYTES = 15
_REMEMBERED = 65_536

Naming = Callable[[VmRecord], str]
"""What somebody is told of the host that a record names."""


def real(record: VmRecord) -> str:
    """The name itself: for operators, and within the gateway."""
    return record.host_id


class HostNames:
    """Names of hosts as customers and operators see them.

    Args:
        bus: Where the secret is.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._secret = b""
        self.told = lru_cache(_REMEMBERED)(self._told)

    async def synced(self) -> None:
        """Return once the secret is there."""
        async for attempt in forever("host-names"):
            with attempt:
                self._secret = await shared_secret(self._bus, _KEY)

    def naming(self, principal: Principal) -> Naming:
        """How hosts of VMs are shown to somebody."""
        return real if Scope.ADMIN in principal.scopes else self._of_owner

    def all(self, principal: Principal, hosts: Iterable[str]) -> tuple[str, ...]:
        """Some hosts as they are shown to somebody, sorted."""
        if Scope.ADMIN in principal.scopes:
            return tuple(sorted(hosts))
        return tuple(sorted(self.told(principal.customer_id, host_id) for host_id in hosts))

    def _of_owner(self, record: VmRecord) -> str:
        return self.told(record.customer_id, record.host_id)

    def _told(self, customer_id: str, host_id: str) -> str:
        """The name of a host for one customer: a token of 29 characters."""
        if not self._secret:
            raise RuntimeError("the secret behind the names of hosts has not been read")
        message = b"\0".join((customer_id.encode(), host_id.encode()))
        digest = hmac.digest(self._secret, message, "sha256")[:_BYTES]
        return f"host-{base64.b32encode(digest).decode().lower()}"
