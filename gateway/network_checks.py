"""Whether a VM can be reached, asked of its host."""

from __future__ import annotations

from gateway import host_questions
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.api import VmView
from schemas.codec import encode
from schemas.network_checks import CHECK_S, NetworkCheck, NetworkQuery, decode_network_reply
from schemas.subjects import vm_network
from schemas.vms import VmState


async def ask(bus: Bus, vm: VmView, query: NetworkQuery) -> NetworkCheck:
    """What the VM's host has found.

    Raises:
        RefusedError: NOT_FOUND if the host has no such VM, RATE_LIMITED while it is looked at
            already, UNAVAILABLE if the host does not answer.
        TransientError: What it answers makes no sense.
    """
    if vm.state is VmState.PENDING:
        summary = "no host has taken it yet; nothing was sent"
        return NetworkCheck(vm_id=vm.vm_id, state=vm.state, proven=False, summary=summary)
    subject = vm_network(vm.host_id, query.vm_id)
    with host_questions.refusals(vm.host_id):
        reply = await host_questions.reply(
            bus, subject, encode(query), decode_network_reply, CHECK_S
        )
    if reply.error is not None:
        raise host_questions.refusal(reply.error)
    if reply.check is None:
        raise TransientError("the reply about the network is empty")
    return reply.check
