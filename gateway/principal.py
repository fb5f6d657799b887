"""Who asks, and what for: what a checked token comes down to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.errors import RefusedError
from schemas.errors import ErrorCode

CHALLENGE = 'Bearer realm="decisec"'


class Scope(StrEnum):
    """What a token may be good for. None of them implies another."""

    VMS_READ = "vms:read"
    VMS_WRITE = "vms:write"
    USAGE_READ = "usage:read"
    ADMIN = "admin"


CUSTOMER_SCOPES = frozenset(Scope) - {Scope.ADMIN}
"""All that a customer's own things can be asked for; `ADMIN` is about everybody's."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, on behalf of which customer, and what they may do.

    Attributes:
        subject: As the issuer calls them; empty if it does not.
        customer_id: Empty for an operator who has none: such a one may do what asks for
            `Scope.ADMIN`, and nothing else.
        token_id: The token's `jti`; empty if it has none.
        issued_at_s: Unix time, like the two that follow.
        not_before_s: The token is good from then on.
        expires_at_s: And up to then.
        revocation_keys: Keys of bucket `revoked_tokens` under which the token may be revoked.
    """

    subject: str
    customer_id: str
    scopes: frozenset[str]
    token_id: str = field(default="", compare=False)
    issued_at_s: float = field(default=0.0, compare=False)
    not_before_s: float = field(default=0.0, compare=False)
    expires_at_s: float = field(default=math.inf, compare=False)
    revocation_keys: tuple[str, ...] = field(default=(), compare=False)

    def require(self, scope: Scope) -> None:
        """Go on only with this scope and, for a customer's things, with a customer.

        Raises:
            RefusedError: FORBIDDEN.
        """
        if scope not in self.scopes:
            raise RefusedError(
                ErrorCode.FORBIDDEN,
                f"The token lacks the scope {scope.value}.",
                headers={
                    "WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", '
                    f'scope="{scope.value}"'
                },
            )
        if not self.customer_id and scope is not Scope.ADMIN:
            raise RefusedError(ErrorCode.FORBIDDEN, "The token names no customer.")
