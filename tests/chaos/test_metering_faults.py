"""Parts are killed and the store answers badly: each sample is stored once all the same.

A short form of `just chaos metering`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.metering import PLAN, kill_parts, spoil_answers

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

SHORT = dataclasses.replace(PLAN, hosts=4, vms=5, seconds=25.0)


@pytest.mark.parametrize("siege", [kill_parts, spoil_answers])
async def test_whatever_fails_each_sample_is_stored_once(
    tmp_path: Path, siege: Callable[..., Awaitable[dict[str, Any]]]
) -> None:
    """And billed to the unit; rubbish, and nothing else, is set aside."""
    report = await siege(tmp_path, SHORT, pause_s=(0.5, 1.5), seed=3)
    assert report["problems"] == []
    assert report["conserved"]
    assert sum(report["faults"].values()) >= 4, report["faults"]
