"""What is sent to Cloud Hypervisor and read from it has the vendor's names and types."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from vm_agent.drivers import cloud_hypervisor_api as api

SPEC = "DECISEC_CLOUD_HYPERVISOR_SPEC"
ACTIONS = {
    "vmm.ping": "get",
    "vmm.shutdown": "put",
    "vm.info": "get",
    "vm.counters": "get",
    "vm.create": "put",
    "vm.boot": "put",
    "vm.pause": "put",
    "vm.resume": "put",
    "vm.power-button": "put",
    "vm.snapshot": "put",
    "vm.restore": "put",
}
BODIES = {"vm.create": "VmConfig", "vm.snapshot": "VmSnapshotConfig", "vm.restore": "RestoreConfig"}


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The vendor's OpenAPI file for v53, where it is at hand."""
    path = os.environ.get(SPEC)
    if not path:
        pytest.skip(f"{SPEC} does not name the vendor's OpenAPI file")
    found: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    return found


STRUCTS = [
    value
    for value in vars(api).values()
    if isinstance(value, type)
    and issubclass(value, msgspec.Struct)
    and value not in {api.Sent, api.VmCounters, api.BlockCounters}
]
ENUMS = [
    value
    for value in vars(api).values()
    if isinstance(value, type) and issubclass(value, StrEnum) and value is not StrEnum
]


def schema_type(kind: msgspec.inspect.Type) -> dict[str, Any]:
    """How the vendor writes one of our types."""
    match kind:
        case msgspec.inspect.UnionType(types=types):
            (one,) = (item for item in types if not isinstance(item, msgspec.inspect.NoneType))
            return schema_type(one)
        case msgspec.inspect.StructType(cls=cls) | msgspec.inspect.EnumType(cls=cls):
            return {"$ref": f"#/components/schemas/{cls.__name__}"}
        case msgspec.inspect.ListType(item_type=item):
            return {"type": "array", "items": schema_type(item)}
        case msgspec.inspect.IntType():
            return {"type": "integer"}
        case msgspec.inspect.BoolType():
            return {"type": "boolean"}
        case msgspec.inspect.StrType():
            return {"type": "string"}
        case _:
            raise AssertionError(f"no schema has {kind}")


def expected(struct: type[msgspec.Struct], name: str, kind: msgspec.inspect.Type) -> dict[str, Any]:
    """As `schema_type`; a state is read as text, so that an unknown one is no garbage."""
    if struct is api.VmInfo and name == "state":
        return {"$ref": "#/components/schemas/VmState"}
    return schema_type(kind)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_a_type_is_a_part_of_the_vendors_schema(
    spec: dict[str, Any], struct: type[msgspec.Struct]
) -> None:
    """Its fields are there, of the same type; what the vendor requires is always sent."""
    schema = spec["components"]["schemas"][struct.__name__]
    described = msgspec.inspect.type_info(struct)
    assert isinstance(described, msgspec.inspect.StructType)
    for field in described.fields:
        theirs = schema["properties"][field.encode_name]
        ours = expected(struct, field.encode_name, field.type)
        assert {key: theirs.get(key) for key in ours} == ours, field.encode_name
    required = set(schema.get("required", ()))
    always = {field.encode_name for field in described.fields if field.required}
    if issubclass(struct, api.Sent):
        assert required <= always
        # The driver leaves out what has the vendor's default.
        for field in described.fields:
            if field.default not in (msgspec.NODEFAULT, None):
                theirs = schema["properties"][field.encode_name]
                assert theirs.get("default", False) == field.default
    else:
        assert always <= required


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_words_are_the_vendors(spec: dict[str, Any], enum: type[StrEnum]) -> None:
    """Each is in the vendor's list; of states, all are."""
    theirs = spec["components"]["schemas"][enum.__name__]["enum"]
    assert {str(word) for word in enum} <= set(theirs)
    if enum is api.VmState:
        assert {str(word) for word in enum} == set(theirs)


def test_counters_are_integers_by_device_and_name(spec: dict[str, Any]) -> None:
    """The names of devices are ours, those of counters are in no schema."""
    schema = spec["components"]["schemas"]["VmCounters"]
    assert schema["additionalProperties"]["additionalProperties"]["type"] == "integer"
    assert "disk" in {field.name for field in msgspec.structs.fields(api.VmCounters)}
    assert api.DISK_ID == "disk"


def test_actions_are_the_vendors(spec: dict[str, Any]) -> None:
    """Path, method and body of each."""
    assert api.API_ROOT == "/api/v1/"
    for action, method in ACTIONS.items():
        operation = spec["paths"][f"/{action}"][method]
        if action in BODIES:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{BODIES[action]}"}
        else:
            assert "requestBody" not in operation


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'["Error from API","The VM could not boot","VM is not created"]',
         "Error from API: The VM could not boot: VM is not created"),
        (b'["one\\nline"," and  one "]', "one line: and one"),
        (b"[]", "no reason given"),
        (b"", "no reason given"),
        (b'{ "error": "Invalid\nAll" }', repr(b'{ "error": "Invalid\nAll" }')),
        (b"[1,2]", repr(b"[1,2]")),
        (b"\xff" * 500, repr(b"\xff" * 120)),
    ],
)  # fmt: skip
def test_an_error_becomes_one_line(body: bytes, reason: str) -> None:
    """Whatever the body is; what is no error of the API's is shown as it is."""
    assert api.reason_of(body) == reason


def test_counters_that_are_not_there_are_zero() -> None:
    """A machine without a disk has none; those of others, and other numbers, do not matter."""
    body = b'{"nic":{"rx_bytes":5},"disk":{"read_bytes":7,"read_latency_min":18446744073709551615}}'
    assert api.decode_counters(body).disk == api.BlockCounters(read_bytes=7)
    assert api.decode_counters(b"{}").disk == api.BlockCounters()


@pytest.mark.parametrize("count", [b"-1", b"9223372036854775808", b"1.5", b'"7"', b"null"])
def test_a_counter_that_cannot_be_is_garbage(count: bytes) -> None:
    """It is not taken for a reading."""
    with pytest.raises(msgspec.ValidationError):
        api.decode_counters(b'{"disk":{"read_bytes":%b}}' % count)
