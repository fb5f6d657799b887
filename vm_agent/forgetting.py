"""Deleted VMs are forgotten once no command to them is left on the bus.

Usually the agent knows: the command that deleted the VM is acknowledged, and nothing comes after
it. An agent that dies between the server's word and its own note of it, or that does not hear
the server's word, would remember the VM for nobody; so the stream is asked.
"""

from __future__ import annotations

import asyncio
from typing import Protocol
from uuid import UUID

import structlog

from runtime.errors import TransientError
from schemas.vms import VmState
from vm_agent.fleet import Fleet, Vm

_log = structlog.get_logger("decisec.forgetting")

_LOOK_AGAIN_S = 5.0


class Waiting(Protocol):
    """Commands that are not acknowledged."""

    async def waits_for(self, vm_id: UUID) -> bool:
        """Whether there is one to this VM. TransientError while NATS is away."""


class Forgetting:
    """Looks for deleted VMs that nobody will ask for any more.

    Args:
        fleet: All VMs.
        commands: What may still come.
    """

    def __init__(self, fleet: Fleet, commands: Waiting) -> None:
        self._fleet = fleet
        self._commands = commands

    async def run(self) -> None:
        """Look from time to time, until cancelled."""
        while True:
            try:
                await self.look()
            except TransientError as error:
                _log.info("deleted_vms.kept", error=str(error))
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def look(self) -> None:
        """Forget those that can be. TransientError while NATS is away."""
        for vm in self._fleet.vms:
            if _is_kept(vm) and not await self._commands.waits_for(vm.vm_id):
                await self._fleet.answered(vm.vm_id)


def _is_kept(vm: Vm) -> bool:
    return vm.record.state is VmState.DELETED and not vm.record.answered
