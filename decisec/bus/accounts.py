"""The server's accounts and users, made of roles and credentials. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from decisec.bus.registry import Credential
from decisec.bus.roles import (
    CORE,
    EDGE_API,
    EdgeRole,
    Permissions,
    Roles,
    core_permissions,
    edge_permissions,
    is_pull,
    named,
    of_all,
)
from runtime.credentials import API_PREFIX
from runtime.streams import Declaration

SYSTEM = "SYS"
_SPARE_STREAMS = 4
"""A version that has more of them is applied before the server's configuration is made anew."""

_MAX_CONSUMERS = 16_384
"""One for each agent, up to 1024 partitions, and mirrors of buckets."""

_ANSWER_WITHIN_S = 10


def accounts(
    roles: Roles, credentials: Iterable[Credential], declaration: Declaration, max_bytes: int
) -> dict[str, Any]:
    """The accounts, in the server's words.

    Args:
        roles: What each may do.
        credentials: Those that are good.
        declaration: Whose streams are to find room.
        max_bytes: What all streams may take together.
    """
    good = [one for one in credentials if one.good]
    at_edge = {(one.role, one.name) for one in good if one.role in roles.edge}
    found: dict[str, Any] = {SYSTEM: {}, CORE: _core(roles, good, declaration, max_bytes)}
    asked = found[CORE]["imports"]
    for role_name, name in sorted(at_edge):
        role = roles.edge[role_name]
        users = [
            _user(one.public_key, edge_permissions(role, name, one.public_key), answers=True)
            for one in good
            if (one.role, one.name) == (role_name, name)
        ]
        account = role.account.replace("{name}", name)
        found[account] = {**_edge(role, name), "users": users}
        asked += [
            {"service": {"account": account, "subject": subject}}
            for subject in named(role.answer, name)
        ]
    return found


def rendered(found: dict[str, Any]) -> str:
    """The accounts as a file to be included. The server reads JSON as well as its own words."""
    return (
        "# Made by `decisec bus config` of roles and credentials: changes here are lost.\n"
        f"accounts: {json.dumps(found, indent=1)}\n"
    )


def _core(
    roles: Roles, good: list[Credential], declaration: Declaration, max_bytes: int
) -> dict[str, Any]:
    exports: list[dict[str, Any]] = []
    for role in roles.edge.values():
        exports += [{"service": of_all(subject)} for subject in role.publish]
        exports += [
            {"service": of_all(f"{API_PREFIX}.{call}")}
            | ({"response_type": "stream"} if is_pull(call) else {})
            for call in role.api
        ]
        exports += [{"stream": of_all(subject)} for subject in role.hear.values()]
    return {
        "jetstream": {
            "max_memory": 64 * 1024 * 1024,
            "max_store": max_bytes,
            "max_streams": len(declaration.stream) + len(declaration.bucket) + _SPARE_STREAMS,
            "max_consumers": _MAX_CONSUMERS,
        },
        "exports": exports,
        "imports": [],
        "users": [
            _user(one.public_key, core_permissions(roles.core[one.role], one.public_key))
            for one in good
            if one.role in roles.core
        ],
    }


def _edge(role: EdgeRole, name: str) -> dict[str, Any]:
    def service(subject: str) -> dict[str, Any]:
        return {"service": {"account": CORE, "subject": subject}}

    return {
        "limits": msgspec.to_builtins(role.limits),
        "exports": [
            {"service": subject, "accounts": [CORE]} for subject in named(role.answer, name)
        ],
        "imports": [
            *(service(subject) for subject in named(role.publish, name)),
            *(
                {**service(f"{API_PREFIX}.{call}"), "to": f"{EDGE_API}.{call}"}
                for call in named(role.api, name)
            ),
            *(
                {"stream": {"account": CORE, "subject": there}}
                | ({"to": here} if here != there else {})
                for here, there in zip(
                    named(role.hear, name), named(role.hear.values(), name), strict=True
                )
            ),
        ],
    }


def _user(public_key: str, granted: Permissions, *, answers: bool = False) -> dict[str, Any]:
    permissions: dict[str, Any] = {
        # An empty list would permit everything.
        "publish": {"allow": granted.publish} if granted.publish else {"deny": [">"]},
        "subscribe": {"allow": granted.subscribe},
    }
    if answers:
        # Only where it was asked to, once: the server makes the subject up for each question.
        permissions["allow_responses"] = {"max": 1, "expires": f"{_ANSWER_WITHIN_S}s"}
    return {"nkey": public_key, "permissions": permissions}
