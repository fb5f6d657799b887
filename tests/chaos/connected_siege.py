"""An agent that dies at every step of connecting and disconnecting a VM, while somebody attacks.

In each round one VM of a customer `globex` is made, booted, stopped, booted again and deleted,
and in the midst of that the agent dies. While it is dead, and again whenever the VM runs, all kinds
of frames that must not get through are sent from the VM's tap, as a guest would that has taken its
VMM over (`tests.chaos.intruder`). A bystander of another customer stays connected all the time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from schemas.commands import BootVm, CreateVm, DeleteVm
from schemas.ids import new_id
from schemas.networking import Inbound, Networking
from schemas.vms import VmSpec
from tests.chaos.besieging import besieging
from tests.chaos.intruder import Intruder, intruder
from tests.chaos.siege import Siege
from tests.support.connected_agent import surroundings
from tests.support.hypervisors import Lab
from tests.support.wires import IPV4, nft_in
from vm_agent.data_dir import identity
from vm_agent.network.layout import netns_of

_ARGS = {"tx": "5"}
SPECS = {
    "open": VmSpec(image="tiny", memory_mib=32, kernel_args=_ARGS),
    "closed": VmSpec(
        image="tiny",
        memory_mib=32,
        kernel_args=_ARGS,
        networking=Networking(ipv4=True, inbound=Inbound.CLOSED, ports=("tcp/22",), prefix=64),
    ),
}
"""Those that are open get all their rules by netlink, the others by libnftables."""

_ABOUT = ("before ", "after ")
_NUMBERS = "~/network/"
_PLACES = ("/run/netns", "/proc/sys/net", _NUMBERS)
WEIGHTY = ("move", "nftables", "up", "DELLINK")
"""Words in the names of steps that move, open or remove a tap, or change its rules."""


class Step(NamedTuple):
    """A place to die at, by name.

    Attributes:
        times: How often it has come by then.
        spec: What kind of VMs are in the round.
        crowd: How many.
    """

    name: str
    times: int
    spec: str
    crowd: int = 1

    @property
    def common(self) -> bool:
        """Whether it comes in each such round: numbers are taken for many VMs at once."""
        return _NUMBERS not in self.name

    @property
    def weighty(self) -> bool:
        """Whether a tap is moved, opened or removed here, or its rules are changed."""
        return any(word in self.name.split() for word in WEIGHTY)

    def __str__(self) -> str:
        return f"{self.crowd} {self.spec}: {self.name} #{self.times}"


class ConnectedSiege(Siege):
    """A siege of an agent that connects VMs; see `besieging`."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._intruder: Intruder | None = None
        self._spec = "open"
        self._crowd = 1
        self._victims: list[UUID] = []
        self._attacking = asyncio.Lock()

    @property
    def bystander(self) -> UUID:
        """The VM that must outlive it all."""
        (vm_id,) = self._steady
        return vm_id

    def let_in(self, intruder: Intruder) -> None:
        """Attack from now on."""
        self._intruder = intruder

    async def list_network_steps(self, spec: str, crowd: int = 1) -> list[Step]:
        """The steps of one round that are about the network, in their order."""
        self._spec, self._crowd = spec, crowd
        self._steps.unlink(missing_ok=True)
        await self.list_steps()
        return numbered(self._steps.read_text().splitlines(), spec, crowd)

    async def list_restart_steps(self, first: Step) -> list[Step]:
        """The same of a start after a death at a step."""
        lives = await self._die_first(first)
        self._steps.unlink()
        self._wish.write_text("*")
        await self._start()
        names = self._steps.read_text().splitlines()
        await self._go_on(lives, f"{first}, steps of the next start listed")
        return numbered(names, first.spec)

    async def die_at(self, step: Step) -> bool:
        """A round with a death at a step; whether it came to it."""
        self._spec, self._crowd = step.spec, step.crowd
        lives, fell = await self._fall(step.name, step.times)
        await self._pick_up(lives, str(step))
        return fell

    async def die_twice(self, first: Step, second: Step) -> bool:
        """A round with a death at a step, and one in the start after it; whether that came."""
        lives = await self._die_first(first)
        self._wish.write_text(f"{second.name}#{second.times}")
        await self._agent.start()
        fell = await self._wait_for_death(lives)
        if fell:
            self.toll.steps.append(f"{second.name} after {first.name}")
        await self._pick_up(lives, f"{first}, then {second}")
        return fell

    async def die_in_a_crowd(self, size: int) -> bool:
        """A round of many VMs at once, with a death at random."""
        self._crowd = size
        await self.die(None)
        return True

    async def attack_without_rules(self) -> list[str]:
        """What gets through from a VM once its rules are gone, so that they are what keeps it in.

        The agent is dead meanwhile; the next one puts them back.
        """
        self._victims.clear()
        vm_id = await self._born(SPECS["closed"])
        await self._agent.kill()
        self.toll.kills += 1
        await nft_in(netns_of(identity(self._agent.data_dir)), "flush ruleset")
        found = await self._look_for_holes(vm_id)
        await self._start()
        await self._attack("when the rules have come back", vm_id, runs=True)
        await self._do(DeleteVm, vm_id)
        await self._come_to_rest()
        return found

    async def _die_first(self, step: Step) -> list[asyncio.Future[None]]:
        self._spec, self._crowd = step.spec, step.crowd
        lives, _ = await self._fall(step.name, step.times)
        self._wish.unlink(missing_ok=True)
        await self._while_dead(str(step))
        return lives

    def _round(self) -> list[Any]:
        self._victims.clear()
        return [self._life() for _ in range(self._crowd)]

    async def _life(self) -> None:
        vm_id = await self._born(SPECS[self._spec])
        await self._attack("while it runs", vm_id, runs=True)
        await self._stop(vm_id)
        await self._do(BootVm, vm_id)
        await self._attack("while it runs again", vm_id, runs=True)
        await self._do(DeleteVm, vm_id)

    async def _born(self, spec: VmSpec) -> UUID:
        vm_id = new_id()
        self._victims.append(vm_id)
        self._owners[vm_id] = "globex"
        await self._do(CreateVm, vm_id, spec=spec)
        await self._do(BootVm, vm_id)
        return vm_id

    async def _while_dead(self, death: str) -> None:
        for vm_id in self._victims:
            await self._attack(f"while the agent is dead of {death}", vm_id)

    async def _attack(self, when: str, vm_id: UUID, *, runs: bool = False) -> None:
        found = await self._look_for_holes(vm_id, runs=runs)
        self.toll.holes += len(found)
        for what in found:
            self._problem(f"{when}: {what}")

    async def _look_for_holes(self, vm_id: UUID, *, runs: bool = False) -> list[str]:
        if self._intruder is None:
            return []
        async with self._attacking:
            return await asyncio.to_thread(self._intruder.attack, vm_id, runs=runs)

    def _sent_besides(self, vm_id: UUID, incarnation: int) -> int:
        return self._intruder.written[vm_id, incarnation] if self._intruder else 0


def numbered(names: list[str], spec: str, crowd: int = 1) -> list[Step]:
    """Those that are about the network, each with how often its name has come by then."""
    taken: Counter[str] = Counter()
    steps = []
    for name in names:
        taken[name] += 1
        if about_the_network(name):
            steps.append(Step(name, taken[name], spec, crowd))
    return steps


def about_the_network(step: str) -> bool:
    """Whether a step makes, changes or removes something of a VM's connection."""
    return step.startswith(_ABOUT) or any(place in step for place in _PLACES)


def sample(weighty: Iterable[Step], chance: random.Random) -> list[Step]:
    """One step of each name, after it was done, whichever time it comes."""
    done = [step for step in weighty if step.name.startswith("after")]
    names = dict.fromkeys(step.name for step in done)
    return [chance.choice([step for step in done if step.name == name]) for name in names]


@asynccontextmanager
async def connected_siege(
    folder: Path, lab: Lab, driver: str, seed: int
) -> AsyncIterator[ConnectedSiege]:
    """A siege of a fresh agent that connects VMs, with an intruder among them."""
    async with surroundings() as around:
        settings = {**around.settings, "net_ipv4": str(IPV4)}
        async with besieging(
            ConnectedSiege, folder, lab, driver, seed=seed, network=settings
        ) as made:
            await made.settle_in(writers=1)
            with intruder(folder / "agent", around, made.bystander) as one:
                made.let_in(one)
                yield made
