"""An agent that dies at every step of its first start on a host, amid making its fabric.

The next one has to come to the same fabric, with the same rules and the same way out, as one that
nothing has happened to; and what is reaped leaves nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

from tests.chaos.besieging import mortal_agent
from tests.chaos.connected_siege import Step, numbered
from tests.chaos.toll import Toll
from tests.support.agents import AgentProcess, Client
from tests.support.connected_agent import Surroundings
from tests.support.fabric import inside
from tests.support.hypervisors import Lab
from tests.support.wires import nft_in
from vm_agent import namespace
from vm_agent.data_dir import identity
from vm_agent.network.items import read_all
from vm_agent.network.layout import netns_of
from vm_agent.network.netlink import Netlink

_DEATH_S, _START_S, _GONE_S = 15.0, 20.0, 5.0
_SETTINGS = ("ipv6/conf/all/forwarding", "ipv6/conf/default/accept_ra", "ipv4/ip_forward",
             "ipv6/conf/default/addr_gen_mode", "ipv4/conf/all/send_redirects")  # fmt: skip


class FirstStarts:
    """Starts one agent after the other where none has been before.

    Args:
        folder: Each agent's data directory is below it.
        nats_url: Their bus, which has streams.
        lab: Has their image.
        around: Where their fabrics lead.
        client: On the bus.
        toll: Takes down what is wrong.
    """

    def __init__(
        self,
        folder: Path,
        nats_url: str,
        lab: Lab,
        around: Surroundings,
        client: Client,
        toll: Toll,
    ) -> None:
        self._lab = lab
        self._folder = folder
        self._nats_url = nats_url
        self._client = client
        self._around = around
        self._toll = toll
        self._number = 0
        self._due: list[str] = []
        self._run_id: UUID | None = None

    async def list_steps(self) -> list[Step]:
        """The steps of a start that are about the network; nobody dies for it."""
        folder, agent = self._fresh()
        (folder / "wish").write_text("*")
        try:
            await self._start(agent)
            steps = numbered((folder / "steps").read_text().splitlines(), "first start")
            self._due = await self._picture(agent)
        finally:
            await self._end(agent)
        return steps

    async def die_at(self, step: Step) -> bool:
        """A first start with a death at a step, and one after it; whether it came to the death."""
        folder, agent = self._fresh()
        (folder / "wish").write_text(f"{step.name}#{step.times}")
        try:
            await agent.start()
            try:
                async with asyncio.timeout(_DEATH_S):
                    await agent.died()
            except TimeoutError:
                self._run_id = (await self._client.host()).run_id
                return False
            self._toll.kills += 1
            self._toll.steps.append(str(step))
            await self._start(agent)
            found = await self._picture(agent)
            wrong = [f"missing: {one}" for one in self._due if one not in found]
            wrong += [f"too much: {one}" for one in found if one not in self._due]
            self._toll.leaks += len(wrong)
            self._toll.problems += [f"after a death at {step}: {one}" for one in wrong]
        finally:
            await self._end(agent)
        return True

    def _fresh(self) -> tuple[Path, AgentProcess]:
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        settings = {"driver": "simulator", **self._around.settings}
        return folder, mortal_agent(folder, self._nats_url, self._lab, settings)

    async def _start(self, agent: AgentProcess) -> None:
        await agent.start()
        async with asyncio.timeout(_START_S):
            host = await self._client.host(other_than=self._run_id)
        self._run_id = host.run_id
        if host.no_network:
            self._toll.problems.append(f"VMs are not connected: {host.no_network}")

    async def _picture(self, agent: AgentProcess) -> list[str]:
        """All that stands on both ends of the way out, in words that are no agent's own."""
        who = identity(agent.data_dir)
        netns = netns_of(who)
        found = inside(netns, lambda: _standing() + _settings())
        outer = inside(self._around.host, _standing)
        # The kernel makes an address of its own of the MAC, which is left to chance.
        found += [line for line in outer if who in line and "ff:fe" not in line]
        found += (await nft_in(netns, "list ruleset", terse=True)).splitlines()
        return [line.replace(who, "agent") for line in found]

    async def _end(self, agent: AgentProcess) -> None:
        """Kill and reap; nothing of it may be left."""
        await agent.kill()
        who = identity(agent.data_dir)
        await agent.reap()
        if (namespace.NETNS_DIR / netns_of(who)).exists():
            self._toll.problems.append("the fabric is there when it is reaped")
        try:
            async with asyncio.timeout(_GONE_S):
                while any(who in line for line in inside(self._around.host, _standing)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._toll.problems.append("the way out is there when the fabric is reaped")


def _standing() -> list[str]:
    netlink = Netlink()
    try:
        standing = read_all(netlink)
    finally:
        netlink.close()
    links = [str((link.name, link.alias, link.mtu, link.up)) for link in standing.links.values()]
    return sorted(links) + sorted(map(str, standing.items))


def _settings() -> list[str]:
    root = Path("/proc/sys/net")
    return [f"{name} = {(root / name).read_text().strip()}" for name in _SETTINGS]
