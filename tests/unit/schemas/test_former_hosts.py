"""A VM's record after moves: whose word each incarnation is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import encode
from schemas.errors import MalformedMessageError
from schemas.ids import new_id
from schemas.vms import MAX_FORMER_HOSTS, decode_vm_record
from tests.support.frames import record

HOSTS = ("host-a", "host-b", "host-c", "host-d")
LEFT = datetime(2026, 1, 2, tzinfo=UTC)

moves = st.lists(st.tuples(st.sampled_from(HOSTS), st.integers(0, 3)), max_size=24)


@given(moves=moves)
def test_each_incarnation_is_one_host_s_or_nobody_s(moves: list[tuple[str, int]]) -> None:
    """However often it moves, and wherever to; what is forgotten is nobody's."""
    one, began, owners = record(new_id(), host="host-a"), 0, {}
    for host, starts in moves:
        for _ in range(starts):
            began += 1
            owners[began] = one.host_id
        one = one.moved(host, last_incarnation=began, left_at=LEFT)
    owners[began + 1] = owners[began + 2**16] = one.host_id
    first = one.former_hosts[0].first_incarnation if one.former_hosts else 1
    assert len(one.former_hosts) <= MAX_FORMER_HOSTS
    assert decode_vm_record(encode(one)) == one
    for number, owner in owners.items():
        believed = [host for host in HOSTS if one.ran_on(host, number)]
        assert believed == ([owner] if number >= first else [])
        assert one.is_open(number) is (number > began)
    assert {former.host_id for former in one.former_hosts} | {one.host_id} == one.hosts


def test_an_incarnation_does_not_go_back_to_an_earlier_host() -> None:
    """Whoever moves a VM has read an old record, or an old status."""
    one = record(new_id()).moved("host-b", last_incarnation=4, left_at=None)
    with pytest.raises(ValueError, match="incarnation 4 ran on an earlier host"):
        one.moved("host-c", last_incarnation=3, left_at=None)


@pytest.mark.parametrize(
    "formers",
    [
        [{"host_id": "h1", "last_incarnation": 2}, {"host_id": "h2", "last_incarnation": 3}],
        [{"host_id": "h1", "first_incarnation": 3, "last_incarnation": 2}],
        [{"host_id": "h1", "last_incarnation": 0}],
        [{"host_id": "h1", "last_incarnation": 2**32}],
        [{"host_id": "../h1", "last_incarnation": 1}],
        [{"host_id": "h1", "last_incarnation": 1, "left_at": "2026-01-01T00:00:00"}],
        [
            {"host_id": "h1", "first_incarnation": number, "last_incarnation": number}
            for number in range(1, MAX_FORMER_HOSTS + 2)
        ],
    ],
)
def test_a_record_that_contradicts_itself_is_refused(formers: list[dict[str, Any]]) -> None:
    """Two hosts for one incarnation, spans that go back, too many, no host, no incarnation."""
    whole = json.loads(encode(record(new_id()))) | {"former_hosts": formers}
    with pytest.raises(MalformedMessageError):
        decode_vm_record(json.dumps(whole).encode())
