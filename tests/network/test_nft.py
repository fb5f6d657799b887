"""Sessions with nftables: refusals that say why, and what the library does not survive."""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack

import pytest

from tests.support.fabric import available
from vm_agent import low_files
from vm_agent.network import trials
from vm_agent.network.nft import NftMissingError, NftSession

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "rules work")


def test_nothing_is_absent_here() -> None:
    """All parts that the filter needs are tried out, one by one, and the host stays as it is."""
    session = NftSession()
    before = session.run("list ruleset")
    assert trials.absent() == []
    assert session.run("list ruleset") == before
    session.close()


def test_what_is_absent_is_named() -> None:
    """With what brings it, and what library or kernel said."""
    wrong = ("a hook of another world", "another kernel", "table inet t { chain c { nonsense; } }")
    (found,) = trials.absent((wrong,))
    assert (found.part, found.remedy) == wrong[:2]
    assert "syntax error" in found.reason


def test_many_open_files_leave_room_for_a_session() -> None:
    """The library uses select(2), and would abort on a descriptor of 1024 or more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    lent = 0
    try:
        with ExitStack() as stack:
            low_files.keep(1)
            while low_files.is_any_free():
                stack.enter_context(open(os.devnull, "rb"))  # noqa: PTH123
            session = NftSession()
            session.run("add table inet low; delete table inet low")
            session.close()
            # It was given back: the next one works as well.
            NftSession().close()
            while low_files.give_up_one():
                lent += 1
                stack.enter_context(open(os.devnull, "rb"))  # noqa: PTH123
            with pytest.raises(NftMissingError, match="below 1024"):
                NftSession()
        NftSession().close()
    finally:
        low_files.keep(lent)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
