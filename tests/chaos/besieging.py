"""A fresh agent under a siege of some kind; whatever happens, nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from tests.chaos.siege import Siege
from tests.support import kernel_steps
from tests.support.agents import AgentProcess, Client
from tests.support.hypervisors import GUEST_ARGS, Lab
from tests.support.nats import bus_with_streams
from vm_agent.images import ImageStore

S = TypeVar("S", bound=Siege)


@asynccontextmanager
async def besieging(
    kind: type[S],
    folder: Path,
    lab: Lab,
    driver: str,
    *,
    seed: int,
    network: Mapping[str, str] | None = None,
) -> AsyncIterator[S]:
    """A siege of a fresh agent.

    Args:
        kind: Of siege.
        folder: Of the test.
        lab: Guest and hypervisors.
        driver: One of them.
        seed: Of what is left to chance.
        network: Settings with which it connects its VMs.
    """
    lab.require(driver)
    settings = {"driver": driver, "disk_mib": "20000", **(network or {})}
    if driver == "firecracker" and lab.firecracker is not None:
        settings["firecracker"] = str(lab.firecracker)
    async with bus_with_streams(folder / "nats") as (server, bus):
        agent = mortal_agent(folder, server.url, lab, settings)
        client = Client(bus)
        try:
            await agent.start()
            async with asyncio.timeout(20):
                await client.host()
            yield kind(agent, client, folder, seed, snapshots=driver == "firecracker")
        finally:
            await agent.kill()
            with contextlib.suppress(AssertionError):
                await agent.reap()


def mortal_agent(
    folder: Path, nats_url: str, lab: Lab, settings: Mapping[str, str]
) -> AgentProcess:
    """An agent that dies when a wish says so, with an image `tiny`."""
    ImageStore(folder / "agent" / "images").add(
        "tiny", lab.image.kernel, allowed_args=GUEST_ARGS, driver_args={"*": "console=ttyS0"}
    )
    notes = {
        "DECISEC_TEST_WISH": str(folder / "wish"),
        "DECISEC_TEST_STEPS": str(folder / "steps"),
        "LD_PRELOAD": str(kernel_steps.build(folder)),
    }
    return AgentProcess(
        folder / "agent",
        nats_url,
        settings=settings,
        module="tests.support.mortal_agent",
        env=notes,
    )
