"""An example of each message: what it needs, with values as they might be."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from decisec.messages.channel import Message
from decisec.messages.headers import COMMAND, PARAMETERS, VM
from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS
from schemas.vms import METERS

_AT = "2026-01-31T09:30:00Z"
_AT_NS = 1_769_851_800_000_000_000
_SNAPSHOT = "019c1375-22f8-7a1e-8d0c-90b6a2f7d3e5"
_RUN = "019c1370-4f10-7d20-9c33-7e51aa01b2c3"
_EVENT = "019c1375-2300-7b11-8e4a-5f0b8ec0a9d1"
_COUNTERS = dict(
    zip(METERS, (60_000, 4_200_000_000, 7_864_320_000, 4096, 512, 1400, 900), strict=True)
)
_WIDTHS = {column.name: column.width for column in (*COLUMNS, *ENRICHMENT_COLUMNS)}

_WORDS: Mapping[str, Any] = {
    "customer_id": "acme",
    "peer_id": "globex",
    "halves": {"globex": {"since": _AT}},
    "host_id": "rack-3-host-7",
    "host": "rack-3-host-7",
    "vm_id": VM,
    "command_id": COMMAND,
    "operation_id": COMMAND,
    "event_id": _EVENT,
    "snapshot_id": _SNAPSHOT,
    "correction_id": _EVENT,
    "run_id": _RUN,
    "seed": _RUN,
    "collector_id": PARAMETERS["collector"].example,
    "pool": "default",
    "region": "local",
    "price_plan": "default",
    "plan_id": "standard",
    "price": "0.0042",
    "created_by": "alice",
    "image": "tiny",
    "name": "web-1",
    "state": "running",
    "driver": "firecracker",
    "version": "0.1.0",
    "boot_id": "6f1f3c3e-3f0e-4a53-8d11-0e0f0d1c2b3a",
    "verb": "boot",
    "status": "succeeded",
    "actor": "alice",
    "requested_by": "alice",
    "action": "create-vm",
    "target": "vm web-1",
    "outcome": "succeeded",
    "reason": "disks are full",
    "message": "There is no such VM.",
    "code": "not_found",
    "member": "gw-1",
    "members": ["gw-1", "gw-2"],
    "batch_id": "b-1",
    "request": "0f9d1a36c8a14c0b8f0b8d6b0a4f2c11",
    "strategy": "spread",
    "former": ["globex"],
    "customers": ["acme"],
    "pools": ["default"],
    "price_plans": ["default"],
    "vms": [],
    "operations": [],
    "snapshots": [],
    "images": [{"name": "tiny"}],
    "corrections": [],
    "complete_ms": {"rack-3-host-7": 1_769_851_799_900},
    "ticks_ms": {"rack-3-host-7": 1_769_851_799_900},
    "lags_ms": [180, 240],
    "spent": {"acme reads": 12},
    "short": {"acme reads": 3.5},
    "holds": {},
    "totals": _COUNTERS,
    "incarnation": 1,
    "engine": "25.8",
    "database": "decisec",
    "units": ["collector-3"],
    **_COUNTERS,
    "tick_ms": 1_769_851_800_000,
    "sampled_at_ns": _AT_NS,
    "collected_at_ns": _AT_NS + 40_000_000,
    "stored_at_ns": _AT_NS + 180_000_000,
    "seq": 4711,
    "seq_first": 4711,
    "seq_last": 4713,
    "silent_ms": 12_400,
    "frames": 12,
    "rows": 60,
    "round": 7,
    "vcpus": 1,
    "memory_mib": 128,
    "disk_mib": 1024,
    "slots": 5,
    "kind": "full",
    "data": base64.b64encode(b"Linux version 6.1\n").decode(),
    "offset": 0,
    "next_offset": 18,
    "end": True,
    "created_at": _AT,
    "issued_at": _AT,
    "deadline": "2026-01-31T09:31:00Z",
}
"""By the name of the field; what a field's schema does not allow is left to the schema."""

_SHOWN = frozenset(
    {
        *("requested_by", "command_id", "incarnation", "status", "state", "driver"),
        *("spent", "short", "holds", "lags_ms", "ticks_ms"),
        *("report", "found", "page", "chunk", "explanation"),
        *("vcpus", "memory_mib", "disk_mib", "slots"),
        *METERS,
    }
)
"""Fields that are shown though they are not needed."""


def example_of(message: Message, schemas: Mapping[str, Any]) -> Any:
    """The payload of a message as JSON has it; None for one without a schema."""
    if message.key not in schemas and message.kind is None:
        return None
    name = message.key if message.schema else getattr(message.kind, "__name__", "")
    found = _Maker(schemas).value({"$ref": f"#/{name}"}, "")
    return found | dict(message.example) if isinstance(found, dict) else found


class _Maker:
    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas

    def value(self, schema: Mapping[str, Any], name: str) -> Any:
        """Something that the schema allows, by the field's name where it can."""
        if len(schema.get("allOf", ())) == 1:
            return self.value(schema["allOf"][0], name)
        if "$ref" in schema:
            return self.value(self._schemas[schema["$ref"].rpartition("/")[2]], name)
        if "enum" in schema:
            word = _WORDS.get(name)
            return word if word in schema["enum"] else schema["enum"][0]
        if "anyOf" in schema:
            return self.value(schema["anyOf"][0], name)
        match schema.get("type"):
            case "object":
                return self._object(schema, name)
            case "array":
                return self._array(schema, name)
            case "boolean":
                return _WORDS.get(name, schema.get("default", False)) is True
            case "integer" | "number":
                word = _WORDS.get(name)
                known = isinstance(word, int | float) and not isinstance(word, bool)
                return word if known else schema.get("default", schema.get("minimum", 1))
            case "string":
                return self._string(schema, name)
        return {}

    def _object(self, schema: Mapping[str, Any], name: str) -> Any:
        if "properties" not in schema:
            return _WORDS[name] if isinstance(_WORDS.get(name), dict) else {}
        needed = set(schema.get("required", ()))
        return {
            field: self.value(one, field)
            for field, one in schema["properties"].items()
            if field in needed or field in _SHOWN
        }

    def _array(self, schema: Mapping[str, Any], name: str) -> Any:
        items = schema.get("items", {})
        if isinstance(items, list):
            return [self.value(one, one["title"]) for one in items]
        if isinstance(_WORDS.get(name), list):
            return _WORDS[name]
        return [self.value(items, name)] if schema.get("minItems") else []

    @staticmethod
    def _string(schema: Mapping[str, Any], name: str) -> str:
        if "contentEncoding" in schema and not isinstance(_WORDS.get(name), str):
            raw = UUID(VM).bytes if name == "vm_ids" else bytes(_WIDTHS.get(name, 32))
            return base64.b64encode(raw).decode()
        if schema.get("format") == "date-time":
            return str(_WORDS[name]) if name in ("deadline",) else _AT
        if schema.get("format") == "date":
            return _AT[:10]
        word = _WORDS.get(name)
        if schema.get("format") == "uuid":
            return str(word or _EVENT)
        return word if isinstance(word, str) else str(schema.get("default", name or "text"))
