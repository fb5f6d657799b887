"""Crafted frames from a VM's tap: each goes where it should, or nowhere, for the right reason."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.network import real
from tests.network.cases import CASES
from tests.network.page import PAGE, render
from tests.network.suite import suite, write_report
from tests.support import fabric as fabrics

needs_rules = pytest.mark.skipif(
    fabrics.available() is not None, reason=fabrics.available() or "rules work"
)

LEAST_HITS = 0.6
"""Share of attacks that have to get through where there is no filter: the cases bite."""


def test_cases_have_names_of_their_own() -> None:
    """And there are enough of them."""
    names = Counter((case.category, case.name) for case in CASES)
    assert [name for name, times in names.items() if times > 1] == []
    assert len(CASES) >= 120


@needs_rules
async def test_every_packet_goes_where_it_should() -> None:
    """All cases with the filter; all attacks without, of which most have to get through."""
    async with suite(filtered=True) as made:
        problems = [problem for case in CASES if (problem := await made.wrong(case))]
    async with suite(filtered=False) as made:
        attacks = [case for case in CASES if case.attack]
        hits = [case for case in attacks if await made.gets_through(case)]
    write_report(CASES, len(CASES) - len(problems), len(hits))
    assert not problems, "\n".join(problems)
    assert len(hits) >= LEAST_HITS * len(attacks)


@needs_rules
async def test_the_agents_own_fabric_holds_as_well() -> None:
    """The same cases, but for those about what it has not."""
    async with real.suite() as made:
        cases = list(filter(real.is_about_it, CASES))
        problems = [problem for case in cases if (problem := await made.wrong(case))]
    assert not problems, "\n".join(problems)
    assert len(cases) > 0.9 * len(CASES)


def test_the_page_says_what_is_tested() -> None:
    """`just network-packets` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == render()
