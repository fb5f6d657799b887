"""With whom customers agree, as gateways write it."""

from __future__ import annotations

from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.network_peers import CustomerPeers, PeerHalf, decode_customer_peers
from schemas.subjects import NETWORK_PEERS


class Halves:
    """The bucket."""

    def __init__(self, bus: Bus) -> None:
        self.bucket = Bucket(bus, NETWORK_PEERS, decode_customer_peers)

    async def say(self, customer_id: str, *peers: str) -> int:
        """Whom a customer agrees with from now on; returns the revision."""
        return await self.bucket.put(customer_id, agreeing_with(*peers))


def agreeing_with(*peers: str) -> CustomerPeers:
    """A value of the bucket."""
    half = PeerHalf(since=utc_now())
    return CustomerPeers(halves=dict.fromkeys(peers, half))
