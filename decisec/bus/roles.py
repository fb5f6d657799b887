"""What each role may do, read from `infra/nats/roles.toml` and spelled out in subjects. No I/O."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources
from typing import Annotated

import msgspec

from runtime.credentials import API_PREFIX, INBOXES, REPLIES, inbox_prefix
from runtime.errors import FatalError
from schemas.ids import token

CORE = "CORE"
"""The account of the streams, and of all who work on them."""

EDGE_API = "JS.CORE.API"
"""What JetStream's requests begin with in the other accounts: under their own `$JS.API` the server
answers each that it has no JetStream."""

_NAME = "{name}"
_PULL = "CONSUMER.MSG.NEXT."

Subjects = tuple[str, ...]
Limit = Annotated[int, msgspec.Meta(gt=0)]


class CoreRole(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A role in the account of the streams; see the file."""

    publish: Subjects = ()
    subscribe: Subjects = ()
    consume: Subjects = ()
    read: Subjects = ()
    watch: Subjects = ()
    write: Subjects = ()
    api: Subjects = ()
    answer: bool = False


class AccountLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the server grants an account."""

    max_connections: Limit
    max_subscriptions: Limit
    max_payload: Limit = 1024 * 1024


class EdgeRole(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A role with an account for each name; see the file."""

    account: str
    limits: AccountLimits
    publish: Subjects = ()
    api: Subjects = ()
    hear: dict[str, str] = msgspec.field(default_factory=dict)
    answer: Subjects = ()


class Roles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    core: dict[str, CoreRole]
    edge: dict[str, EdgeRole]

    @property
    def names(self) -> tuple[str, ...]:
        """All roles."""
        return (*self.core, *self.edge)


class Permissions(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may do in its account."""

    publish: Subjects
    subscribe: Subjects


def shipped() -> Roles:
    """The roles that ship with decisec.

    Raises:
        FatalError: The file is damaged.
    """
    text = resources.files("infra").joinpath("nats").joinpath("roles.toml").read_text()
    try:
        return msgspec.convert(tomllib.loads(text), Roles)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise FatalError(f"infra/nats/roles.toml: {error}") from error


def named(subjects: Iterable[str], name: str) -> Subjects:
    """The subjects for one host or customer."""
    return tuple(subject.replace(_NAME, token(name)) for subject in subjects)


def of_all(subject: str) -> str:
    """The subject for all hosts or customers."""
    return ".".join("*" if _NAME in part else part for part in subject.split("."))


def is_pull(api: str) -> bool:
    """Whether many answers come to one request."""
    return api.startswith(_PULL)


def core_permissions(role: CoreRole, public_key: str) -> Permissions:
    """What a user with this role may do."""
    api = list(role.api)
    publish = [*role.publish, *(f"$KV.{bucket}.>" for bucket in role.write)]
    for stream in role.consume:
        api += _consuming(stream)
        publish.append(f"$JS.ACK.{stream}.>")
    for stream in (*role.read, *(f"KV_{bucket}" for bucket in role.watch)):
        api += _reading(stream)
        publish += [f"$JS.ACK.{stream}.>", f"$JS.FC.{stream}.>"]
    for bucket in role.write:
        # Who writes a key looks at it first.
        api += [f"DIRECT.GET.KV_{bucket}.$KV.{bucket}.>"]
    publish += [f"{API_PREFIX}.{call}" for call in api]
    if role.answer:
        publish += [f"{INBOXES}.>", f"{REPLIES}.>"]
    return Permissions(
        publish=tuple(dict.fromkeys(publish)),
        subscribe=(*role.subscribe, f"{inbox_prefix(public_key)}.>"),
    )


def edge_permissions(role: EdgeRole, name: str, public_key: str) -> Permissions:
    """What a user with this role may do, in the account of this name."""
    return Permissions(
        publish=(
            *named(role.publish, name),
            *(f"{EDGE_API}.{call}" for call in named(role.api, name)),
        ),
        subscribe=(
            *named(role.hear, name),
            *named(role.answer, name),
            f"{inbox_prefix(public_key)}.>",
        ),
    )


def _consuming(stream: str) -> list[str]:
    return [
        f"STREAM.INFO.{stream}",
        f"CONSUMER.CREATE.{stream}.>",
        f"CONSUMER.INFO.{stream}.*",
        f"CONSUMER.LIST.{stream}",
        f"CONSUMER.MSG.NEXT.{stream}.*",
        f"CONSUMER.UNPIN.{stream}.*",
    ]


def _reading(stream: str) -> list[str]:
    return [
        f"STREAM.INFO.{stream}",
        f"STREAM.MSG.GET.{stream}",
        f"DIRECT.GET.{stream}",
        f"DIRECT.GET.{stream}.>",
        f"CONSUMER.CREATE.{stream}",
        f"CONSUMER.CREATE.{stream}.>",
        f"CONSUMER.INFO.{stream}.*",
        f"CONSUMER.LIST.{stream}",
        f"CONSUMER.MSG.NEXT.{stream}.*",
        f"CONSUMER.DELETE.{stream}.*",
    ]
