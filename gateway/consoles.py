"""A VM's console, asked of its host."""

from __future__ import annotations

import structlog

from gateway.errors import RETRY_AFTER_S, RefusedError, no_such_vm
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.api import VmView
from schemas.codec import encode
from schemas.consoles import ConsoleChunk, ConsoleQuery, decode_console_reply
from schemas.errors import ErrorCode, ErrorInfo, MalformedMessageError
from schemas.subjects import vm_console
from schemas.vms import VmState

_log = structlog.get_logger("decisec.consoles")

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
    try:
        answer = await bus.request(
            vm_console(vm.host_id, vm.vm_id), encode(query), timeout_s=_TIMEOUT_S
        )
    except TransientError as error:
        _log.info("host.not_answering", host_id=vm.host_id, error=str(error))
        raise RefusedError(
            ErrorCode.UNAVAILABLE,
            "The host of this VM does not answer; try again.",
            retry_after_s=RETRY_AFTER_S,
        ) from error
    try:
        reply = decode_console_reply(answer.data)
    except MalformedMessageError as error:
        raise TransientError(f"malformed console reply: {error.detail}") from error
    if reply.error is not None:
        raise _refusal(reply.error)
    if reply.chunk is None:
        raise TransientError("the console reply is empty")
    return reply.chunk


def _refusal(error: ErrorInfo) -> RefusedError:
    match error.code:
        case ErrorCode.NOT_FOUND:
            return no_such_vm()
        case ErrorCode.RATE_LIMITED:
            return RefusedError(error.code, error.message, retry_after_s=RETRY_AFTER_S)
        case _:
            return RefusedError(error.code, error.message)
