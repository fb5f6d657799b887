"""What a VM's serial console has printed: asked on `vm.ask.<host>.<vm>.console`, and answered.

Offsets are positions in everything that the VM ever printed, over all its incarnations, so they
stay right when the oldest part is cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.ids import CustomerId, VmId
from schemas.units import KIB, Counter

MAX_CHUNK_BYTES = 64 * KIB

ChunkLimit = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHUNK_BYTES)]


class ConsoleQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A part of what a VM printed. With neither `offset` nor `tail_bytes` it is the beginning.

    Attributes:
        offset: Where the part begins.
        tail_bytes: It begins so many bytes before the end instead; `offset` wins.
        limit_bytes: How long it may be.
    """

    customer_id: CustomerId
    vm_id: VmId
    offset: Counter | None = None
    tail_bytes: Counter | None = None
    limit_bytes: ChunkLimit = MAX_CHUNK_BYTES


class ConsoleChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A part of what a VM printed: any bytes, for the guest is a stranger. Base64 in JSON.

    Attributes:
        offset: Where `data` begins. Before the offset that was asked for, if that one is past the
            end; behind it, if what was there is cut off.
        next_offset: Where it ends: the offset to go on from.
        end: There is no more at the moment.
        lost_bytes: How much between the offset that was asked for and `offset` is cut off.
    """

    data: Annotated[bytes, msgspec.Meta(max_length=MAX_CHUNK_BYTES)]
    offset: Counter
    next_offset: Counter
    end: bool
    lost_bytes: Counter = 0


class ConsoleReply(msgspec.Struct, frozen=True, kw_only=True):
    """Either a chunk or the reason why there is none."""

    chunk: ConsoleChunk | None = None
    error: ErrorInfo | None = None


decode_console_query: Callable[[bytes], ConsoleQuery] = decoder(ConsoleQuery)
decode_console_reply: Callable[[bytes], ConsoleReply] = decoder(ConsoleReply)
