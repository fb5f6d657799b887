"""Looking into a stream from outside: everything it holds, taking nothing from its consumers."""

from __future__ import annotations

import nats.errors
import nats.js.errors

from runtime.bus import Bus, Message
from runtime.errors import TransientError

_NEXT_WITHIN_S = 5.0


async def count_messages(bus: Bus, stream: str, subject: str = "") -> int:
    """How many messages a stream holds, or of one subject (wildcards allowed) in it.

    Raises:
        TransientError: NATS did not say, or there is no such stream.
    """
    try:
        state = (await bus.js.stream_info(stream, subjects_filter=subject or None)).state
        return sum((state.subjects or {}).values()) if subject else state.messages
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"no word about {stream}: {error}") from error


async def read_stream(bus: Bus, stream: str, subject: str = "") -> list[Message]:
    """All that a stream holds at the moment, in its order; not for work queues.

    Args:
        bus: The connection.
        stream: Its name.
        subject: Only messages of this one; empty for all.

    Raises:
        TransientError: NATS did not answer in time.
    """
    found: list[Message] = []
    left = await count_messages(bus, stream, subject)
    if not left:
        return found
    try:
        subscription = await bus.js.subscribe(
            subject,
            stream=stream,
            ordered_consumer=True,
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )
        try:
            while left:
                message = await subscription.next_msg(timeout=_NEXT_WITHIN_S)
                found.append(Message.of(message))
                left = message.metadata.num_pending
        finally:
            await subscription.unsubscribe()
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"{stream} could not be read to its end: {error}") from error
    return found
