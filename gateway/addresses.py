"""Where a request comes from, with proxies in between; nobody is believed who is not trusted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from runtime.errors import FatalError

_UNKNOWN = "unknown"
_MAX_HOPS = 16


class Addresses:
    """Tells callers apart by address.

    Args:
        trusted: Networks of proxies whose `X-Forwarded-For` is believed, comma separated.

    Raises:
        FatalError: One of them is no network.
    """

    def __init__(self, trusted: str = "") -> None:
        try:
            self._trusted = [
                ip_network(text.strip()) for text in trusted.split(",") if text.strip()
            ]
        except ValueError as error:
            raise FatalError(f"trusted_proxies: {error}") from error

    def of(self, peer: str, forwarded: Sequence[str] = ()) -> str:
        """The caller's address, an IPv6 one as its /64.

        Args:
            peer: Who is connected.
            forwarded: Values of `X-Forwarded-For`, in their order.
        """
        address = _parsed(peer)
        if self._trusted and forwarded and self.trusts(peer):
            hops = ",".join(forwarded).rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]
            for hop in reversed(hops):
                # Each proxy appends whom it heard it from: what proxies of ours wrote is true.
                found = _parsed(hop.strip())
                if found is None:
                    break
                address = found
                if not any(found in network for network in self._trusted):
                    break
        return _named(address)

    def trusts(self, peer: str) -> bool:
        """Whether somebody is one of the proxies."""
        address = _parsed(peer)
        return address is not None and any(address in network for network in self._trusted)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=4096)
def _named(address: IPv4Address | IPv6Address | None) -> str:
    if address is None:
        return _UNKNOWN
    if address.version == 6:
        # A customer of any provider has a whole /64 to call from.
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)
