"""All channels of the bus."""

from __future__ import annotations

from decisec.messages import buckets, doors, facts
from decisec.messages.channel import Channel, Message, covers

CHANNELS: tuple[Channel, ...] = (*doors.CHANNELS, *facts.CHANNELS, *buckets.CHANNELS)


def messages() -> dict[str, Message]:
    """All messages by name."""
    found: dict[str, Message] = {}
    for channel in CHANNELS:
        for message in channel.all_messages:
            if found.setdefault(message.key, message) != message:
                raise AssertionError(f"two messages are called {message.key}")
    return found


def channel_of(subject: str) -> tuple[Channel, dict[str, str]] | None:
    """The channel that a subject is of, and what its parameters are; None if it is of none."""
    for channel in CHANNELS:
        if (found := covers(channel.address, subject)) is not None and all(
            found[name] in allowed for name, allowed in channel.values.items()
        ):
            return channel, found
    return None
