"""`decisec vm quarantine` and `release`: the operator cuts a VM off from the network, and back."""

from __future__ import annotations

import asyncio
from typing import Annotated
from uuid import UUID

import typer

from decisec.cli.acts import Reason, ask_reason, operator
from decisec.cli.connection import DEFAULT_STATE, NatsUrl, StateDirectory, bus
from decisec.cli.exits import CommandError, Exit
from decisec.cli.output import Json, show, show_json

_TAKEN_WITHIN_S = 5.0

VmId = Annotated[str, typer.Argument(metavar="VM", help="Id of the VM, of any customer.")]


def quarantine(
    vm: VmId,
    reason: Reason = "",
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Cut a VM off from the network, in both directions; it runs on. For operators.

    The order stands until `release`, also while the host's agent or the bus is down. The owner sees
    it. Safe to repeat.
    """
    _order(vm, ask_reason(reason), as_json, nats_url, state_dir, cut_off=True)


def release(
    vm: VmId,
    reason: Reason = "",
    as_json: Json = False,
    nats_url: NatsUrl = "",
    state_dir: StateDirectory = DEFAULT_STATE,
) -> None:
    """Let a VM back to the network that was cut off. For operators. Safe to repeat."""
    _order(vm, ask_reason(reason), as_json, nats_url, state_dir, cut_off=False)


def _order(
    vm: str, reason: str, as_json: bool, nats_url: str, state_dir: StateDirectory, *, cut_off: bool
) -> None:
    from runtime.hosts import Hosts

    try:
        vm_id = UUID(vm)
    except ValueError:
        raise CommandError(f"{vm!r} is no id of a VM", Exit.USAGE, "usage") from None

    async def act() -> tuple[str, bool, bool]:
        async with bus(nats_url, state_dir) as connected:
            hosts = Hosts(connected)
            status = await hosts.find(vm_id)
            if status is None:
                raise CommandError(f"no host has a VM {vm_id}", Exit.NOT_FOUND, "not_found")
            changed = await hosts.quarantine(
                status, cut_off=cut_off, reason=reason, requested_by=operator()
            )
            taken = await hosts.until_cut_off(vm_id, cut_off=cut_off, within_s=_TAKEN_WITHIN_S)
            return status.host_id, changed, taken

    host_id, changed, taken = asyncio.run(act())
    if as_json:
        show_json({"vm_id": vm_id, "host_id": host_id, "quarantined": cut_off,
                   "changed": changed, "taken": taken})  # fmt: skip
        return
    state = "cut off from the network" if cut_off else "on the network"
    if taken:
        show(f"VM {vm_id} on {host_id} is {state}")
    else:
        show(f"VM {vm_id} is {state} once the agent of {host_id} is heard: the order stands")
