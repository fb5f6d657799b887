"""Streams and buckets as data: read the declaration, compare it with the server, apply it."""

from __future__ import annotations

import tomllib
from enum import Enum, StrEnum
from importlib import resources
from typing import Annotated, Literal

import msgspec
import nats.errors
import nats.js.errors
from nats.js.api import (
    DiscardPolicy,
    KeyValueConfig,
    RePublish,
    RetentionPolicy,
    StorageType,
    StoreCompression,
    StreamConfig,
    SubjectTransform,
)
from nats.js.client import JetStreamContext

from runtime.bus import Bus
from runtime.errors import FatalError, TransientError
from schemas.subjects import parted

MAX_PARTITIONS = 1024
"""Each costs a consumer on the server and two requests a second."""

Replicas = Annotated[int, msgspec.Meta(ge=1, le=5)]
_Size = Annotated[int, msgspec.Meta(ge=0)]


class StreamDeclaration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stream; ages in seconds, sizes in bytes, 0 for no limit.

    Attributes:
        partitions: The one subject `a.b.*` is stored as `a.b.<partition>.*`; 0 leaves it as it is.
        republish: What is stored under the one subject is published here as well; empty for none.
        max_per_subject: Messages with one subject; the oldest of that subject goes first.
        max_message_bytes: A larger message is refused.
    """

    name: str
    description: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"]
    discard: Literal["old", "new"]
    max_age_s: _Size
    max_bytes: _Size
    duplicate_window_s: _Size
    compression: bool = False
    replicas: Replicas = 1
    partitions: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARTITIONS)] = 0
    republish: str = ""
    max_per_subject: _Size = 0
    max_message_bytes: _Size = 0


class BucketDeclaration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One KV bucket.

    Attributes:
        republish: What is stored is published here as well, under its key; empty for none.
    """

    name: str
    description: str
    ttl_s: _Size = 0
    max_bytes: _Size = 0
    replicas: Replicas = 1
    republish: str = ""


class Declaration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    stream: tuple[StreamDeclaration, ...]
    bucket: tuple[BucketDeclaration, ...]


class Drift(StrEnum):
    """How a stream or bucket on the server compares with its declaration."""

    MISSING = "missing"
    DIFFERENT = "different"
    SAME = "same"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One stream or bucket; `fields` maps what differs to (declared, actual)."""

    kind: Literal["stream", "bucket"]
    name: str
    drift: Drift
    fields: dict[str, tuple[str, str]] = msgspec.field(default_factory=dict)


_COMPARED = (
    "description",
    "subjects",
    "subject_transform",
    "republish",
    "retention",
    "discard",
    "max_age",
    "max_bytes",
    "max_msgs_per_subject",
    "max_msg_size",
    "duplicate_window",
    "compression",
    "num_replicas",
)

_COMPARED_OF_BUCKETS = (
    "description",
    "max_age",
    "max_bytes",
    "num_replicas",
    "allow_rollup_hdrs",
    "republish",
)


def declared(*, replicas: int = 0, partitions: int = 0) -> Declaration:
    """The declaration that ships with decisec.

    Args:
        replicas: Copies of each stream and bucket in a cluster of servers; 0 as declared.
        partitions: Into so many parts the raw metrics are divided; 0 as declared.

    Raises:
        FatalError: The file is damaged.
    """
    text = resources.files("infra").joinpath("nats").joinpath("streams.toml").read_text()
    try:
        shipped = msgspec.convert(tomllib.loads(text), Declaration)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise FatalError(f"infra/nats/streams.toml: {error}") from error
    replace = msgspec.structs.replace
    return Declaration(
        stream=tuple(
            replace(
                s,
                replicas=replicas or s.replicas,
                partitions=(partitions or s.partitions) if s.partitions else 0,
            )
            for s in shipped.stream
        ),
        bucket=tuple(replace(b, replicas=replicas or b.replicas) for b in shipped.bucket),
    )


async def compare(bus: Bus, declaration: Declaration) -> list[Difference]:
    """How the server's streams and buckets differ from the declaration; changes nothing.

    Raises:
        TransientError: The server did not answer.
    """
    return [
        _difference("stream", s.name, _stream_config(s), await _actual(bus.js, s.name))
        for s in declaration.stream
    ] + [
        _difference("bucket", b.name, _bucket_as_stream(b), await _actual(bus.js, f"KV_{b.name}"))
        for b in declaration.bucket
    ]


async def apply(bus: Bus, declaration: Declaration) -> list[Difference]:
    """Create what is missing and update what differs; messages stay. Safe to repeat.

    Returns:
        What stood before, as from `compare`.

    Raises:
        TransientError: The server did not answer.
        FatalError: The server refuses a declaration.
    """
    before = await compare(bus, declaration)
    drift = {(d.kind, d.name): d.drift for d in before}
    try:
        for s in declaration.stream:
            match drift["stream", s.name]:
                case Drift.MISSING:
                    await bus.js.add_stream(_stream_config(s))
                case Drift.DIFFERENT:
                    await bus.js.update_stream(_stream_config(s))
        for b in declaration.bucket:
            match drift["bucket", b.name]:
                case Drift.MISSING:
                    await bus.js.create_key_value(_bucket_config(b))
                    await _update_bucket(bus.js, b)
                case Drift.DIFFERENT:
                    await _update_bucket(bus.js, b)
    except nats.js.errors.APIError as error:
        raise FatalError(f"NATS refuses the declaration: {error.description or error}") from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"NATS did not answer: {error}") from error
    return before


def _stream_config(s: StreamDeclaration) -> StreamConfig:
    return StreamConfig(
        name=s.name,
        description=s.description,
        subjects=list(s.subjects),
        subject_transform=_transform(s),
        republish=RePublish(src=s.subjects[0], dest=s.republish) if s.republish else None,
        retention=RetentionPolicy(s.retention),
        discard=DiscardPolicy(s.discard),
        max_age=s.max_age_s,
        max_bytes=s.max_bytes or -1,
        max_msgs_per_subject=s.max_per_subject or -1,
        max_msg_size=s.max_message_bytes or -1,
        duplicate_window=s.duplicate_window_s,
        storage=StorageType.FILE,
        compression=StoreCompression.S2 if s.compression else StoreCompression.NONE,
        num_replicas=s.replicas,
        allow_direct=True,
    )


def _transform(s: StreamDeclaration) -> SubjectTransform | None:
    if not s.partitions:
        return None
    (subject,) = s.subjects
    return SubjectTransform(subject, parted(subject, s.partitions))


def _bucket_config(b: BucketDeclaration) -> KeyValueConfig:
    return KeyValueConfig(
        bucket=b.name,
        description=b.description,
        ttl=b.ttl_s or None,
        max_bytes=b.max_bytes or None,
        storage=StorageType.FILE,
        replicas=b.replicas,
        direct=True,
    )


def _bucket_as_stream(b: BucketDeclaration) -> StreamConfig:
    return StreamConfig(
        name=f"KV_{b.name}",
        description=b.description,
        max_age=b.ttl_s,
        max_bytes=b.max_bytes or -1,
        num_replicas=b.replicas,
        # Whoever may write one key could remove all others by a header.
        allow_rollup_hdrs=False,
        republish=RePublish(src=f"$KV.{b.name}.>", dest=b.republish) if b.republish else None,
    )


async def _update_bucket(js: JetStreamContext, b: BucketDeclaration) -> None:
    config = (await js.stream_info(f"KV_{b.name}")).config
    wanted = _bucket_as_stream(b)
    await js.update_stream(
        config.evolve(
            description=wanted.description,
            max_age=wanted.max_age,
            max_bytes=wanted.max_bytes,
            num_replicas=wanted.num_replicas,
            allow_rollup_hdrs=wanted.allow_rollup_hdrs,
            republish=wanted.republish,
            # The window may not be longer than the age.
            duplicate_window=min(config.duplicate_window, b.ttl_s or config.duplicate_window),
        )
    )


async def _actual(js: JetStreamContext, name: str) -> StreamConfig | None:
    try:
        return (await js.stream_info(name)).config
    except nats.js.errors.NotFoundError:
        return None
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise TransientError(f"NATS did not say how {name} stands: {error}") from error


def _difference(
    kind: Literal["stream", "bucket"], name: str, wanted: StreamConfig, actual: StreamConfig | None
) -> Difference:
    if actual is None:
        return Difference(kind=kind, name=name, drift=Drift.MISSING)
    compared = _COMPARED if kind == "stream" else _COMPARED_OF_BUCKETS
    fields = {
        field: (_show(getattr(wanted, field)), _show(getattr(actual, field)))
        for field in compared
        if _show(getattr(wanted, field)) != _show(getattr(actual, field))
    }
    return Difference(
        kind=kind, name=name, drift=Drift.DIFFERENT if fields else Drift.SAME, fields=fields
    )


def _show(value: object) -> str:
    match value:
        case Enum():
            return str(value.value)
        case SubjectTransform():
            return str(value.dest)
        case RePublish():
            return f"{value.src} to {value.dest}"
        case float() | int():
            return f"{value:.0f}"
        case _:
            return str(value)
