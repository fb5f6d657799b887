"""Ids are tokens or canonical UUIDs, and subjects are built from nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import subjects
from schemas.commands import COMMAND_OF, BootVm, Command
from schemas.errors import InvalidIdError, MalformedMessageError
from schemas.ids import HostId, new_id, parse_uuid, token

TOKENS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
TRICKS = [
    "", ".", "..", "a.b", "a*", ">", "a>", "a b", "a\n", "\na", "-a", "A", "é", "a/b", "../x",
    "a\x00", "a" * 64, "%2e", "a\\b", "\u0661",
]  # fmt: skip


@given(TOKENS)
def test_a_token_passes_unchanged(value: str) -> None:
    """What the pattern allows is the same for the function and for the message type."""
    assert token(value) == value
    assert msgspec.json.decode(msgspec.json.encode(value), type=HostId) == value


@pytest.mark.parametrize("value", TRICKS)
def test_a_trick_is_no_token(value: str) -> None:
    """Dots, wildcards, slashes, white space and other scripts are refused in both places."""
    with pytest.raises(InvalidIdError):
        token(value)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(value, HostId)


@given(st.text(max_size=80))
def test_any_text_is_a_token_or_an_invalid_id(value: str) -> None:
    """Function and message type agree on every text."""
    try:
        token(value)
    except InvalidIdError:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(value, HostId)
    else:
        assert msgspec.convert(value, HostId) == value


def test_ids_sort_in_time_and_have_one_spelling() -> None:
    """UUIDv7 grow; upper case, braces and missing dashes are not the same id."""
    first, second = new_id(), new_id()
    assert first < second
    assert first.version == 7
    assert parse_uuid(str(first)) == first
    for spelling in (str(first).upper(), first.hex, f"{{{first}}}", f"urn:uuid:{first}", "", "x"):
        if spelling != str(first):
            with pytest.raises(InvalidIdError):
                parse_uuid(spelling)


@given(TOKENS, st.uuids(), st.sampled_from(sorted(COMMAND_OF)))
def test_a_command_subject_reads_back(host: str, vm: UUID, verb: str) -> None:
    """What is built can be taken apart."""
    address = subjects.parse_vm_command(f"vm.cmd.{host}.{vm}.{verb}")
    assert address == (host, vm, verb)


@given(st.text(max_size=120))
def test_any_other_subject_is_malformed(text: str) -> None:
    """Only the documented error comes out of any text."""
    try:
        subjects.parse_vm_command(text)
    except MalformedMessageError as error:
        assert error.reason == "bad_subject"  # noqa: PT017 - the other branch is legal too


@given(TOKENS, st.uuids())
def test_a_question_reads_back(host: str, vm: UUID) -> None:
    """And only its own host listens to it."""
    subject = subjects.vm_console(host, vm)
    assert subjects.parse_vm_ask(subject) == (host, vm, "console")
    assert subject.startswith(subjects.vm_asks_of(host).removesuffix(">"))


@given(
    st.text(max_size=120)
    | st.builds("vm.ask.{}.{}.{}".format, st.text(), st.uuids() | st.text(), st.text())
)
def test_anything_else_is_no_question(text: str) -> None:
    """Only the documented error comes out of any text, and what passes is made of tokens."""
    try:
        address = subjects.parse_vm_ask(text)
    except MalformedMessageError as error:
        assert error.reason == "bad_subject"  # noqa: PT017 - the other branch is legal too
    else:
        assert token(address.host_id)
        assert token(address.what)


@given(TOKENS, st.uuids())
def test_keys_read_back(customer: str, vm: UUID) -> None:
    """`<customer>.<vm>` is unambiguous because tokens have no dots."""
    assert subjects.parse_vm_key(subjects.vm_key(customer, vm)) == (customer, vm)


def test_every_verb_has_a_command_and_a_subject() -> None:
    """The table of verbs is complete, and the subject ends in the verb."""
    kinds = set(Command.__args__)
    assert set(COMMAND_OF.values()) == kinds
    now = datetime.now(UTC)
    command = BootVm(
        command_id=new_id(), customer_id="acme", vm_id=new_id(), host_id="h1",
        issued_at=now, deadline=now,
    )  # fmt: skip
    assert subjects.vm_command(command) == f"vm.cmd.h1.{command.vm_id}.boot"


@given(TOKENS)
def test_filters_of_a_host_match_its_subjects(host: str) -> None:
    """For each stream whose subjects name hosts; none where they do not."""
    built = {
        subjects.METRICS_RAW: subjects.metrics_raw(host),
        subjects.METRICS_ENRICHED: subjects.metrics_enriched(host),
        subjects.METRICS_REJECTED: subjects.metrics_rejected("unknown_vm", host),
    }
    for stream, subject in built.items():
        assert subjects.host_of_metrics(subject) == host
        for pattern in subjects.filters_of_host(stream, host):
            assert subjects.host_of_metrics(pattern) == host
            assert pattern.split(".")[:2] == subject.split(".")[:2]
    assert subjects.filters_of_host(subjects.VM_EVENTS, host) == ()


@pytest.mark.parametrize("trick", [t for t in TRICKS if t != ""])
def test_no_subject_is_built_from_a_trick(trick: str) -> None:
    """A bad customer or host never reaches a subject."""
    for build in (
        subjects.metrics_raw, subjects.usage_query, subjects.vm_commands_of, subjects.vm_asks_of,
    ):  # fmt: skip
        with pytest.raises(InvalidIdError):
            build(trick)
    with pytest.raises(InvalidIdError):
        subjects.filters_of_host(subjects.METRICS_RAW, trick)


@given(st.integers(1, 1024))
def test_a_transform_says_into_how_many_parts(partitions: int) -> None:
    """In nats-server's words, and read back."""
    words = subjects.parted("metrics.raw.*", partitions)
    assert words == f"metrics.raw.{{{{partition({partitions},1)}}}}.{{{{wildcard(1)}}}}"
    assert subjects.partitions_of(words) == partitions
    assert subjects.partitions_of("metrics.raw.>") == 0


@given(TOKENS, st.integers(0, 1023))
def test_the_host_is_found_in_what_is_published_and_in_what_is_stored(
    host: str, partition: int
) -> None:
    """The partition stands before the host, whose name may be a number too."""
    stored = subjects.metrics_raw_of(partition).replace("*", host)
    assert subjects.host_of_metrics(stored) == host
    assert subjects.host_of_metrics(subjects.metrics_raw(host)) == host
