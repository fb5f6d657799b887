"""Which images a customer can make VMs from."""

from __future__ import annotations

import time

from gateway.auth import Principal, Scope
from gateway.fleet import Fleet
from schemas.api import ImageList, ImageView

_KEPT_S = 1.0
"""Heartbeats come every second, so nothing newer is to be had."""


class ImageService:
    """Names of images, from the heartbeats of hosts.

    Args:
        fleet: Hosts and customers.
        region: Only hosts of this region count.
    """

    def __init__(self, fleet: Fleet, region: str) -> None:
        self._fleet = fleet
        self._region = region
        self._kept: dict[str, tuple[float, ImageList]] = {}

    def all(self, principal: Principal) -> ImageList:
        """Images of hosts in the customer's pool that take VMs now. No host is named."""
        principal.require(Scope.VMS_READ)
        customer = self._fleet.customer(principal.customer_id)
        pool = customer.pool if customer else "default"
        now_s = time.monotonic()
        made_s, found = self._kept.get(pool, (float("-inf"), None))
        if found is None or now_s - made_s > _KEPT_S:
            found = self._of_pool(pool, now_s)
            self._kept[pool] = now_s, found
        return found

    def _of_pool(self, pool: str, now_s: float) -> ImageList:
        silent = self._fleet.silent(now_s)
        names = {
            image
            for host in self._fleet.hosts.values()
            if host.pool == pool
            and host.region == self._region
            and not host.draining
            and host.host_id not in silent
            for image in host.images
        }
        return ImageList(images=tuple(ImageView(name=name) for name in sorted(names)))
