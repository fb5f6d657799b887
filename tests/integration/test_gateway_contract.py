"""The API as its description has it: schemathesis against a running gateway.

Short here. Longer: `just fuzz-api`, which sets the variables below.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from runtime.buckets import Bucket
from schemas.hosts import decode_customer
from schemas.subjects import CUSTOMERS
from tests.support.answering import answering_stack
from tests.support.gateway import Stack
from tests.support.tokens import bearer, operator

ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("DECISEC_FUZZ_EXAMPLES", "8")
SECONDS = int(os.environ.get("DECISEC_FUZZ_S", "15"))
SEED = os.environ.get("DECISEC_FUZZ_SEED", "1")


async def fuzz(running: Stack, folder: Path, headers: dict[str, str], *options: str) -> None:
    """Ask as somebody; fails with what was not as described."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "schemathesis"),
        f"--config-file={ROOT / 'schemathesis.toml'}",
        "run",
        str(ROOT / "docs" / "openapi.json"),
        f"--url={running.url}",
        f"--header=Authorization: {headers['Authorization']}",
        f"--max-examples={EXAMPLES}",
        f"--seed={SEED}",
        "--no-shrink",
        "--no-color",
        *options,
        cwd=folder,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks",
            "PYTHONPATH": str(ROOT),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode(errors="replace")[-20_000:]


@pytest.mark.timeout(SECONDS * 4 + 120)
async def test_every_route_answers_as_described(tmp_path: Path) -> None:
    """Good, bad and absurd requests, one by one and in sequences: nothing but what is described."""
    async with answering_stack(tmp_path, "acme") as running:
        await fuzz(
            running,
            tmp_path,
            bearer(ttl_s=86_400),
            f"--max-time={SECONDS}",
            "--exclude-path-regex=^/v1/admin/",
        )
    assert running.agent.seen, "no VM was made: the requests did not get far"


@pytest.mark.timeout(SECONDS * 4 + 120)
async def test_every_route_for_operators_answers_as_described(tmp_path: Path) -> None:
    """The same as an operator of no customer."""
    async with answering_stack(tmp_path) as running:
        async with running.client(headers=operator()) as api:
            # The one that the examples name.
            plan = {"plan_id": "standard", "currency": "EUR", "prices": {}}
            body = {**plan, "valid_from": "2026-01-01T00:00:00Z"}
            assert (await api.post("/v1/admin/price-plans", json=body)).status_code == 201
        await fuzz(
            running,
            tmp_path,
            operator(ttl_s=86_400),
            f"--max-time={SECONDS // 2}",
            "--include-path-regex=^/v1/admin/",
        )
        made = await Bucket(running.bus, CUSTOMERS, decode_customer).all()
    assert made, "no customer was entered: the requests did not get far"
