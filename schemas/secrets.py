"""What services of one kind share and nobody else may know: values of the bucket `secrets`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from schemas.codec import decoder
from schemas.vms import Timestamp


class SharedSecret(msgspec.Struct, frozen=True, kw_only=True):
    """Random bytes that the first service to need them has made."""

    secret: Annotated[bytes, msgspec.Meta(min_length=32, max_length=64)]
    created_at: Timestamp

    def __repr__(self) -> str:
        """Without the secret, so that no log holds it."""
        return f"SharedSecret(created_at={self.created_at!r})"


decode_shared_secret: Callable[[bytes], SharedSecret] = decoder(SharedSecret)
