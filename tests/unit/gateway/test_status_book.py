"""Whose word about a VM counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.status_book import StatusBook
from schemas.ids import new_id
from schemas.subjects import status_key, vm_key
from schemas.vms import VmState, VmStatus

VM = new_id()
KEY = vm_key("acme", VM)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def status(host_id: str = "h1", state: VmState = VmState.RUNNING, **more: Any) -> VmStatus:
    fields = {"vm_id": VM, "customer_id": "acme", "updated_at": NOW, **more}
    return VmStatus(host_id=host_id, state=state, **fields)


def test_each_host_has_its_own_word() -> None:
    """None writes over another's, and what is removed is gone."""
    book = StatusBook()
    assert book.take(status_key("h1", "acme", VM), status()) == (KEY, "h1")
    assert book.take(status_key("h2", "acme", VM), status("h2", VmState.DELETED)) == (KEY, "h2")
    first = book.get(KEY, "h1")
    assert first is not None
    assert first.state is VmState.RUNNING
    assert book.take(status_key("h1", "acme", VM), None) == (KEY, "h1")
    assert book.get(KEY, "h1") is None
    assert book.get(KEY, "h2") is not None
    assert book.take(status_key("h2", "acme", VM), None) == (KEY, "h2")
    assert book.get(KEY, "h2") is None


def test_what_is_not_as_its_key_is_nobodys_word() -> None:
    """Of another host, another VM or another customer, or under no key at all."""
    told: list[tuple[str, str]] = []
    book = StatusBook(lambda host_id, _, reason: told.append((host_id, reason)))
    key = status_key("h2", "acme", VM)
    for lie in (status("h1"), status("h2", vm_id=new_id()), status("h2", customer_id="globex")):
        assert book.take(key, lie) is None
    for odd in ("", "h2", "a.b.c.d", f"h2.*.{VM}", f"h2.acme.{str(VM).upper()}", "h2.acme.\ufffd"):
        assert book.take(odd, status("h2")) is None
    assert book.get(KEY, "h1") is None
    assert book.get(KEY, "h2") is None
    assert told == [("h2", "forged")] * 3 + [("", "bad_key")] * 6


def test_a_word_from_before_keys_had_hosts_gives_way() -> None:
    """It counts until its agent has written under the new key."""
    book = StatusBook()
    old = status(state=VmState.CREATED)
    assert book.take(KEY, old) == (KEY, "h1")
    assert book.get(KEY, "h1") == old
    new = status(updated_at=NOW - timedelta(days=1))
    book.take(status_key("h1", "acme", VM), new)
    book.take(KEY, old)
    assert book.get(KEY, "h1") == new
