"""Transitions, derived ids, error words, and the settings' secrets."""

from __future__ import annotations

import itertools
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.attempts import boot_id, create_id
from gateway.bodies import decode, field_problem
from gateway.errors import RefusedError
from gateway.problems import STATUS_OF
from gateway.transitions import TARGET_OF, check, expected, legal
from schemas.api import CreateVmRequest
from schemas.errors import ErrorCode
from schemas.ids import new_id, parse_uuid
from schemas.vms import VmState

S = VmState


@pytest.mark.parametrize(
    ("verb", "states"),
    [
        ("boot", {S.CREATED, S.STOPPED}),
        ("pause", {S.RUNNING}),
        ("resume", {S.PAUSED}),
        ("shutdown", {S.BOOTING, S.RUNNING, S.PAUSED, S.FAILED}),
        ("reboot", {S.BOOTING, S.RUNNING, S.PAUSED, S.FAILED}),
        ("delete", set(S) - {S.DELETED}),
        ("create", set()),
    ],
)
def test_a_verb_is_legal_in_these_states_only(verb: str, states: set[VmState]) -> None:
    """The table that spares agents the commands that make no sense."""
    assert {state for state in S if legal(verb, state)} == states


def test_a_verb_is_judged_by_what_the_earlier_ones_lead_to() -> None:
    """A boot may follow a create under way, and not a boot under way."""
    check("boot", S.PENDING, ["create"])
    check("boot", S.CREATING, [])
    check("shutdown", S.CREATED, ["boot"])
    with pytest.raises(RefusedError, match="with boot under way") as caught:
        check("boot", S.CREATED, ["boot"])
    assert caught.value.code is ErrorCode.ILLEGAL_TRANSITION
    check("delete", S.PENDING, ["create", "boot"])
    with pytest.raises(RefusedError, match="still being created"):
        check("shutdown", S.PENDING, ["create", "boot"])
    with pytest.raises(RefusedError, match="Cannot delete a VM that is running, with delete"):
        check("delete", S.RUNNING, ["delete"])


@given(st.sampled_from(VmState), st.lists(st.sampled_from(sorted(TARGET_OF)), max_size=3))
def test_what_is_expected_is_always_a_settled_state(state: VmState, verbs: list[str]) -> None:
    """No verb is ever judged against a state that is about to end by itself."""
    then = expected(state, verbs)
    assert then not in {S.PENDING, S.CREATING, S.BOOTING, S.STOPPING, S.DELETING}


def test_ids_of_a_creation_follow_from_the_vm_and_are_all_different() -> None:
    """Any gateway finds the commands of any VM, and no two are the same."""
    vms = [new_id() for _ in range(50)]
    ids = [make for vm in vms for make in (*(create_id(vm, n) for n in range(16)), boot_id(vm))]
    assert len(set(ids)) == len(ids)
    assert create_id(vms[0], 3) == create_id(vms[0], 3)
    for vm, found in itertools.product(vms[:1], ids[:17]):
        assert found.version == 7
        assert found.int >> 80 in (vm.int >> 80, (vm.int >> 80) + 1)
        assert parse_uuid(str(found)) == found


def test_every_code_has_a_status() -> None:
    """No refusal can lack a status."""
    assert set(STATUS_OF) == set(ErrorCode)
    assert all(400 <= status < 600 for status in STATUS_OF.values())


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b'{"image":"tiny","vcpus":"2"}', "$.vcpus", "int"),
        (b'{"image":"tiny","vcpus":0}', "$.vcpus", ">= 1"),
        (b'{"image":"tiny","vcpus":1.5}', "$.vcpus", "int"),
        (b'{"image":"tiny","vcpus":true}', "$.vcpus", "int"),
        (b'{"image":"tiny","memory_mib":99999999999999999999}', "$.memory_mib", "int"),
        (b"{}", "$.image", "missing"),
        (b'{"image":"tiny","host":"/etc"}', "$.host", "unknown field"),
        (b'{"image":"../../etc/passwd"}', "$.image", "regex"),
        (b'{"image":"tiny\\n"}', "$.image", "regex"),
        (b'{"image":"tiny","labels":{"Bad Key":"x"}}', "$.labels", "regex"),
        (b'{"image":"tiny","kernel_args":{"init":"/bin/sh -c"}}', "$.kernel_args[...]", "regex"),
        (b'{"image":"tiny","boot":1}', "$.boot", "bool"),
        (b"[]", "$", "object"),
        (b"null", "$", "object"),
        (b'{"image":', "$", "truncated"),
        (b'{"image":"tiny",}', "$", "byte"),
        (b'{"image":"\xff"}', "$", ""),
        (b"[" * 5000, "$", ""),
        (b'{"labels":' * 5000, "$.labels[...]", ""),
    ],
)
def test_a_bad_body_is_refused_by_field(body: bytes, field: str, words: str) -> None:
    """Each mistake is named with its JSON path or its position."""
    with pytest.raises(RefusedError) as caught:
        decode(body, CreateVmRequest)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    (problem,) = caught.value.fields
    assert problem.field == field
    assert words in problem.message


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes) -> None:
    """Garbage in, 400 out."""
    with suppress(RefusedError):
        assert isinstance(decode(data, CreateVmRequest), CreateVmRequest)


@given(st.text(max_size=200))
def test_any_words_of_the_library_become_a_field_problem(text: str) -> None:
    """A change of msgspec's wording costs precision, never an exception."""
    assert msgspec.json.encode(field_problem(text))
