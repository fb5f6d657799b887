"""A VM's console, asked of its host."""

from __future__ import annotations

from uuid import UUID

from gateway import host_questions
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.api import VmView
from schemas.codec import encode
from schemas.consoles import ConsoleChunk, ConsoleQuery, ConsoleReply, decode_console_reply
from schemas.errors import ErrorCode
from schemas.subjects import vm_console
from schemas.vms import VmState

_TIMEOUT_S = 2.0
"""A host answers within milliseconds, or not at all."""


async def ask(bus: Bus, vm: VmView, query: ConsoleQuery) -> ConsoleChunk:
    """What the VM's host answers.

    Raises:
        RefusedError: NOT_FOUND if the host has no such VM, RATE_LIMITED, or UNAVAILABLE if it
            does not answer.
        TransientError: What it answers makes no sense.
    """
    if vm.state is VmState.PENDING:
        # No host has taken it yet, so it has printed nothing.
        return ConsoleChunk(data=b"", offset=0, next_offset=0, end=True)
    with host_questions.refusals(vm.host_id):
        reply = await _reply(bus, vm.host_id, query)
    if reply.error is not None:
        raise host_questions.refusal(reply.error)
    if reply.chunk is None:
        raise TransientError("the console reply is empty")
    return reply.chunk


class Absent:
    """Asks hosts whether they have a VM: nobody else can answer for them.

    Args:
        bus: The connection.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def __call__(self, customer_id: str, vm_id: UUID, host_id: str) -> bool:
        """Whether a host says that it has no such VM of this customer.

        Raises:
            TransientError: It says nothing, or nothing that makes sense.
        """
        query = ConsoleQuery(customer_id=customer_id, vm_id=vm_id, limit_bytes=1)
        reply = await _reply(self._bus, host_id, query)
        return reply.error is not None and reply.error.code is ErrorCode.NOT_FOUND


async def _reply(bus: Bus, host_id: str, query: ConsoleQuery) -> ConsoleReply:
    return await host_questions.reply(
        bus, vm_console(host_id, query.vm_id), encode(query), decode_console_reply, _TIMEOUT_S
    )
