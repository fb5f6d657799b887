"""Sessions with nftables: refusals that say why, and what the library does not survive."""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack

import pytest

from tests.support.fabric import available
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


def test_too_many_files_are_an_error_and_not_the_end() -> None:
    """The library uses select(2) on a descriptor that would be too high, and would abort."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with ExitStack() as stack:
            while stack.enter_context(open(os.devnull, "rb")).fileno() < 1024:  # noqa: PTH123
                pass
            with pytest.raises(NftMissingError, match="below 1024"):
                NftSession()
        NftSession().close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
