"""The API as its description has it: schemathesis against a running gateway.

Short here. Longer: `just fuzz-api`, which sets the variables below.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.support.answering import answering_stack
from tests.support.tokens import bearer

ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("DECISEC_FUZZ_EXAMPLES", "8")
SECONDS = int(os.environ.get("DECISEC_FUZZ_S", "15"))
SEED = os.environ.get("DECISEC_FUZZ_SEED", "1")


@pytest.mark.timeout(SECONDS * 4 + 120)
async def test_every_route_answers_as_described(tmp_path: Path) -> None:
    """Good, bad and absurd requests, one by one and in sequences: nothing but what is described."""
    async with answering_stack(tmp_path, "acme") as running:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "schemathesis"),
            f"--config-file={ROOT / 'schemathesis.toml'}",
            "run",
            str(ROOT / "docs" / "openapi.json"),
            f"--url={running.url}",
            f"--header=Authorization: {bearer(ttl_s=86_400)['Authorization']}",
            f"--max-examples={EXAMPLES}",
            f"--max-time={SECONDS}",
            f"--seed={SEED}",
            "--no-shrink",
            "--no-color",
            cwd=tmp_path,
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
    assert running.agent.seen, "no VM was made: the requests did not get far"
