"""What it costs a gateway to check a token: the first time, each time after, and one that is bad.

On real keys of each algorithm, beside a list of revocations, in one process and without a network.
Medians of wall time per token, and CPU time per token over all of them.

    python -m tests.load.bench_tokens --tokens 2000 --revoked 30000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from gateway.auth import Authenticator
from gateway.errors import RefusedError
from gateway.issuer_keys import IssuerKeys
from gateway.settings import GatewaySettings
from runtime.clock import utc_now
from runtime.telemetry import configure_logging
from schemas.tokens import Revocation, RevokedBy
from tests.support.issuer import ALGORITHMS, MemoryDocument, SigningKey
from tests.support.revocations import Revoked

KEYS = tuple(SigningKey(algorithm, algorithm.lower()) for algorithm in ALGORITHMS)


@dataclass(frozen=True)
class Cost:
    """Of one kind of token, each in microseconds."""

    what: str
    median_us: float
    p99_us: float
    cpu_us: float


async def measure(tokens: int, revoked: int) -> list[Cost]:
    """All kinds of tokens, `tokens` of each."""
    keys = IssuerKeys(MemoryDocument(*KEYS), refresh_s=1e6, max_stale_s=1e9, wait_s=1.0)
    revocations = Revoked()
    for number in range(revoked):
        revocations.add(
            Revocation(
                by=RevokedBy.JTI,
                value=f"revoked-{number}",
                reason="bench",
                requested_by="bench",
                revoked_at=utc_now(),
            )
        )
    authenticator = Authenticator(keys, revocations, GatewaySettings())
    found: list[Cost] = []
    async with asyncio.TaskGroup() as group:
        following = group.create_task(keys.run(), name="keys")
        await keys.synced()
        for key in KEYS:
            good = [key.token(jti=f"{key.kid}-{number}") for number in range(tokens)]
            found.append(await _cost(f"{key.algorithm} first", good, authenticator))
            found.append(await _cost(f"{key.algorithm} again", good, authenticator))
            stranger = SigningKey(key.algorithm, key.kid, number=1)
            forged = [stranger.token(jti=f"x-{number}") for number in range(tokens)]
            found.append(await _cost(f"{key.algorithm} forged", forged, authenticator))
        unknown = [SigningKey("EdDSA", f"kid-{number}").token() for number in range(tokens)]
        found.append(await _cost("unknown kid", unknown, authenticator))
        garbage = ["a.b.c"] * tokens
        found.append(await _cost("garbage", garbage, authenticator))
        following.cancel()
    return found


async def _cost(what: str, tokens: Sequence[str], authenticator: Authenticator) -> Cost:
    headers = [f"Bearer {token}" for token in tokens]
    taken_ns: list[int] = []
    cpu_ns = time.process_time_ns()
    for header in headers:
        began_ns = time.perf_counter_ns()
        with suppress(RefusedError):
            await authenticator.principal(header)
        taken_ns.append(time.perf_counter_ns() - began_ns)
    cpu_ns = time.process_time_ns() - cpu_ns
    taken_ns.sort()
    return Cost(
        what,
        taken_ns[len(taken_ns) // 2] / 1e3,
        taken_ns[len(taken_ns) * 99 // 100] / 1e3,
        cpu_ns / len(tokens) / 1e3,
    )


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--revoked", type=int, default=30_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure_logging("bench", "warning")
    costs = asyncio.run(measure(options.tokens, options.revoked))
    if options.json:
        sys.stdout.write(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")
        return 0
    sys.stdout.write(f"{'token':16}{'median':>10}{'p99':>10}{'CPU':>10}  in us\n")
    for cost in costs:
        sys.stdout.write(
            f"{cost.what:16}{cost.median_us:10.1f}{cost.p99_us:10.1f}{cost.cpu_us:10.1f}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
