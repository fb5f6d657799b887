"""A thread that lives in a network namespace, and does there what it is asked, one after the other.

pyroute2's sockets belong to the thread that makes them, and the agent's own threads never leave
their namespace; so there is one of these for the fabric, and one for where its uplink leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vm_agent import namespace

T = TypeVar("T")


class Resident:
    """A thread in a namespace.

    Args:
        netns: A name below `/run/netns`; empty stays where the agent is.
        make: Make the namespace if there is none of that name.
    """

    def __init__(self, netns: str, *, make: bool = False) -> None:
        self._netns = netns
        self._make = make
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"netns-{netns or 'own'}")
        self._route: IPRoute | None = None

    async def run(self, work: Callable[[IPRoute], T]) -> T:
        """Do something in there. A cancellation waits for its end first, so that it is known.

        Raises:
            OSError, NetlinkError: The kernel refuses; or there is no such namespace.
        """

        def entered() -> T:
            return work(self._entered())

        future = asyncio.get_running_loop().run_in_executor(self._executor, entered)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def close(self) -> None:
        """Close its socket and end the thread; may be called twice."""
        route, self._route = self._route, None
        if route is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, route.close)
        self._executor.shutdown(wait=False)

    def _entered(self) -> IPRoute:
        if self._route is None:
            if self._netns:
                self._enter()
            self._route = IPRoute()
        return self._route

    def _enter(self) -> None:
        if not self._make:
            namespace.enter(self._netns)
            return
        try:
            namespace.enter(self._netns)
        except FileNotFoundError:
            namespace.make(self._netns)
        except OSError:
            namespace.remove(self._netns)  # half made: a name without a namespace
            namespace.make(self._netns)


def refused(error: OSError | NetlinkError) -> str:
    """What the kernel says, in words."""
    if isinstance(error, NetlinkError):
        with suppress(IndexError):
            return str(error.args[1])
    return str(error)
