"""Who was given credentials: roles, names and public keys, never a seed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from decisec.bus.files import write_whole
from runtime.errors import FatalError
from schemas.codec import encode
from schemas.ids import token
from schemas.vms import Timestamp

PublicKey = Annotated[str, msgspec.Meta(pattern="^U[A-Z2-7]{55}$")]


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """One user of the bus.

    Attributes:
        role: One of `infra/nats/roles.toml`.
        name: The host or the customer; for other roles whatever tells one from the next.
        revoked_at: None while it is good.
    """

    role: str
    name: str
    public_key: PublicKey
    issued_at: Timestamp
    revoked_at: Timestamp | None = None

    @property
    def good(self) -> bool:
        """Whether the server lets it in."""
        return self.revoked_at is None


class Registry(msgspec.Struct, frozen=True, kw_only=True):
    """All credentials, in the order of their issue."""

    credentials: tuple[Credential, ...] = ()

    @property
    def good(self) -> tuple[Credential, ...]:
        """Those that the server lets in."""
        return tuple(one for one in self.credentials if one.good)

    def issued(self, role: str, name: str, public_key: str, at: datetime) -> Registry:
        """With one more.

        Raises:
            FatalError: The key was issued before.
        """
        if any(one.public_key == public_key for one in self.credentials):
            raise FatalError(f"{public_key} was issued before; a key is never issued twice")
        new = Credential(role=role, name=token(name), public_key=public_key, issued_at=at)
        return Registry(credentials=(*self.credentials, new))

    def revoked(self, public_keys: Iterable[str], at: datetime) -> Registry:
        """With some of them no longer good."""
        gone = set(public_keys)
        return Registry(
            credentials=tuple(
                msgspec.structs.replace(one, revoked_at=at)
                if one.good and one.public_key in gone
                else one
                for one in self.credentials
            )
        )


_decode = msgspec.json.Decoder(Registry).decode


def read_registry(path: Path) -> Registry:
    """What a file says; nothing where there is none.

    Raises:
        FatalError: It cannot be read.
    """
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return Registry()
    except (OSError, msgspec.DecodeError) as error:
        raise FatalError(f"{path} cannot be read: {error}") from error


def write_registry(path: Path, registry: Registry) -> None:
    """Replace the file."""
    write_whole(path, msgspec.json.format(encode(registry)) + b"\n")
