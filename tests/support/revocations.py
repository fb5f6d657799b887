"""What is revoked, without a bus."""

from __future__ import annotations

from gateway.principal import Principal
from schemas.tokens import Revocation


class Revoked:
    """A list of revocations that a test fills."""

    def __init__(self) -> None:
        self.found: dict[str, Revocation] = {}

    async def run(self) -> None:
        """Nothing changes by itself."""

    async def synced(self) -> None:
        """Return at once."""

    def add(self, revocation: Revocation) -> None:
        """Revoke."""
        self.found[revocation.key] = revocation

    def covers(self, principal: Principal) -> bool:
        """Whether a principal's token is revoked."""
        return any(
            key in self.found and self.found[key].covers(principal.issued_at_s)
            for key in principal.revocation_keys
        )
