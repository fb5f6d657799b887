"""Who may say what on the bus, and who hears it: as the roles permit, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from decisec.bus.roles import CoreRole, EdgeRole, Roles
from decisec.messages.channel import Channel
from runtime.streams import Declaration

_OWN = "{name}"
_KV = "$KV."
_CREATE = "CONSUMER.CREATE."
_GET = "DIRECT.GET."


class Grant(NamedTuple):
    """What one role may do on a channel.

    Attributes:
        role: Its name in `infra/nats/roles.toml`.
        how: `publish`, `subscribe`, or where it reads: `stream …` or `bucket …`.
        own: Only where the host or the customer in the subject is itself.
        only: Only with these values of parameters.
        answers: It is the one that answers.
    """

    role: str
    how: str
    own: bool = False
    only: tuple[tuple[str, str], ...] = ()
    answers: bool = False


class Grants:
    """The grants of all roles.

    Args:
        roles: What each may do.
        declaration: Which streams and buckets there are.
    """

    def __init__(self, roles: Roles, declaration: Declaration) -> None:
        self._roles = roles
        self._declaration = declaration

    def senders(self, channel: Channel) -> tuple[Grant, ...]:
        """Who may publish on it, by role."""
        found: list[Grant] = []
        for name, role in self._roles.core.items():
            patterns = (*role.publish, *(f"{_KV}{bucket}.>" for bucket in role.write))
            found += _first(_granted(name, "publish", patterns, channel))
        for name, edge in self._roles.edge.items():
            found += _granted(name, "publish", edge.publish, channel)
        return () if channel.republished else tuple(found)

    def receivers(self, channel: Channel) -> tuple[Grant, ...]:
        """Who may hear it, by role: on the subject, or out of the stream or bucket."""
        found: list[Grant] = []
        for name, role in self._roles.core.items():
            found += self._heard_in_core(name, role, channel)
        for name, edge in self._roles.edge.items():
            found += self._heard_at_edge(name, edge, channel)
        return tuple(found)

    def stream_of(self, channel: Channel) -> str:
        """The stream that keeps what is said on a channel as it is; empty for none."""
        for stream in self._declaration.stream:
            if stream.partitions:
                if channel.name == "metricsRawStored":
                    return stream.name
            elif any(_fits(subject, channel.address) is not None for subject in stream.subjects):
                return stream.name
        return ""

    @staticmethod
    def bucket_of(channel: Channel) -> str:
        """The bucket whose keys a channel's subjects are; empty for none."""
        return channel.address.split(".")[1] if channel.address.startswith(_KV) else ""

    def _heard_in_core(self, name: str, role: CoreRole, channel: Channel) -> Iterator[Grant]:
        answers = role.answer and bool(channel.replies)
        yield from _first(_granted(name, "subscribe", role.subscribe, channel, answers=answers))
        stream = self.stream_of(channel)
        if stream and stream in (*role.consume, *role.read):
            yield Grant(name, f"stream {stream}")
        bucket = self.bucket_of(channel)
        if bucket and bucket in role.watch:
            yield Grant(name, f"bucket {bucket}")

    def _heard_at_edge(self, name: str, role: EdgeRole, channel: Channel) -> Iterator[Grant]:
        yield from _granted(name, "subscribe", role.hear, channel)
        yield from _granted(name, "subscribe", role.answer, channel, answers=True)
        read = set()
        for call in role.api:
            for prefix, skipped in ((_CREATE, 2), (_GET, 1)):
                if call.startswith(prefix):
                    stream, *rest = call.removeprefix(prefix).split(".", skipped)
                    read.add((stream, rest[-1]))
        for stream, subject in sorted(read):
            bucket = stream.removeprefix("KV_")
            how = f"stream {stream}" if bucket == stream else f"bucket {bucket}"
            yield from _granted(name, how, (subject,), channel)


def _first(grants: Iterable[Grant]) -> list[Grant]:
    """Of several subjects that permit the same, one."""
    found: dict[tuple[object, ...], Grant] = {}
    for grant in grants:
        found.setdefault((grant.role, grant.how, grant.only), grant)
    return list(found.values())


def _granted(
    role: str, how: str, patterns: Iterable[str], channel: Channel, *, answers: bool = False
) -> Iterator[Grant]:
    for pattern in patterns:
        if (only := _fits(pattern, channel.address)) is not None:
            yield Grant(role, how, _OWN in pattern, tuple(only.items()), answers)


def _fits(pattern: str, address: str) -> dict[str, str] | None:
    """What a pattern of subjects wants of the parameters of an address; None if it is not of it."""
    wanted: dict[str, str] = {}
    parts, words = address.split("."), pattern.split(".")
    for number, word in enumerate(words):
        if word == ">":
            return wanted if number < len(parts) else None
        if number >= len(parts):
            return None
        part = parts[number]
        if part.startswith("{"):
            if word not in ("*", _OWN):
                wanted[part[1:-1]] = word
        elif word not in ("*", part):
            return None
    return wanted if len(words) == len(parts) else None
