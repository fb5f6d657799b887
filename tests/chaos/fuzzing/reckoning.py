"""After the fuzz: every message is in one count, nothing was done for any, and nothing is left."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from runtime.reading import read_stream
from schemas.audit import decode_audit_entry, is_of_host
from schemas.events import VmStopped, event_type
from schemas.subjects import HOST_AUDIT, VM_COMMANDS
from schemas.vms import VmState
from tests.chaos.bills import flaw
from tests.chaos.fuzzing.fuzz import Fuzz
from tests.chaos.fuzzing.model import ANSWERED, MALFORMED
from tests.chaos.fuzzing.vitals import Counted, Vitals
from tests.chaos.fuzzing.witnesses import Witnesses
from tests.chaos.inventory import discrepancies
from tests.support.agents import HOST, AgentProcess, Client
from tests.support.samples import samples_of
from vm_agent.settings import AgentSettings
from vm_agent.store import RecordStore

_UID_BASE = AgentSettings(host_id="x").uid_base
_INTERVAL_S = 30.0
_ENTRIES_PER_INTERVAL = 10 + 32 + 2 * 15
_AUDITED_WITHIN_S = 40.0
_GROWTH_KIB = 8 * 1024
_GROWTH_OF_100 = 10


def miscounted(fuzz: Fuzz, witnesses: Witnesses, counted: Counted) -> Iterator[str]:
    """Where what the agent counted is not what was sent."""
    found: Counter[tuple[str, str]] = Counter()
    for (door, reason), count in counted.refused.items():
        group = MALFORMED if reason in ("not_json", "invalid_message") else reason
        found[door, group] += count
    wanted = Counter(fuzz.sent)
    answered = wanted.pop(("question", ANSWERED), 0)
    for kind in sorted(wanted.keys() | found.keys()):
        if wanted[kind] != found[kind]:
            yield f"{kind}: {wanted[kind]} sent, {found[kind]} counted"
    if counted.answered != answered:
        yield f"{answered} questions to be answered, {counted.answered} counted"
    for what in sorted(witnesses.carried_out.keys() | counted.commands.keys()):
        if witnesses.carried_out[what] != counted.commands[what]:
            yield (
                f"{what}: {witnesses.carried_out[what]} of witnesses, "
                f"{counted.commands[what]} counted"
            )
    if counted.lost:
        yield f"{counted.lost} audit entries lost"


async def misaudited(client: Client, counted: Counted, lasted_s: float) -> tuple[list[str], int]:
    """Where the audit says something else than the counts; and how many entries it has."""
    problems: list[str] = []
    found: Counter[tuple[str, str]] = Counter()
    entries = []
    try:
        async with asyncio.timeout(_AUDITED_WITHIN_S):
            while found != counted.refused:
                entries = [
                    decode_audit_entry(m.data) for m in await read_stream(client.bus, HOST_AUDIT)
                ]
                found.clear()
                for entry in entries:
                    door = entry.action.removeprefix("refuse-")
                    found[door, entry.reason] += int(entry.details["count"])
                await asyncio.sleep(0.5)
    except TimeoutError:
        problems.append(f"audited {dict(found)}, counted {dict(counted.refused)}")
    problems += [f"forged: {entry}" for entry in entries if not is_of_host(entry, HOST)]
    most = (lasted_s / _INTERVAL_S + 3) * _ENTRIES_PER_INTERVAL
    if len(entries) > most:
        problems.append(f"{len(entries)} audit entries in {lasted_s:.0f} s")
    return problems, len(entries)


async def misdone(client: Client, witnesses: Witnesses) -> tuple[list[str], dict[str, Any]]:
    """What happened that no witness asked for, or did not as it asked; and how much it was."""
    problems: list[str] = []
    told: dict[Any, list[str]] = defaultdict(list)
    finals = {}
    for event in await client.events():
        told[event.vm_id].append(event_type(event))
        if isinstance(event, VmStopped):
            finals[event.vm_id, event.incarnation] = event.final_counters
    asked_for = {vm_id: witnesses.events.get(vm_id, []) for vm_id in {*told, *witnesses.events}}
    problems += [
        f"VM {vm_id}: {told[vm_id][-8:]} told, {asked[-8:]} asked for"
        for vm_id, asked in asked_for.items()
        if told[vm_id] != asked
    ]
    frames = await client.frames()
    for vm_id in witnesses.events:
        samples = samples_of(frames, vm_id)
        for incarnation, part in groupby(samples, key=lambda s: s.incarnation):
            final = finals.get((vm_id, incarnation))
            wrong = "it has no end" if final is None else flaw(list(part), final)
            if wrong:
                problems.append(f"incarnation {incarnation} of {vm_id}: {wrong}")
    keys = {m.subject for m in await read_stream(client.bus, "KV_vm_status")}
    strays = {key for key in keys if not any(str(vm) in key for vm in witnesses.events)}
    problems += [f"a status that nobody asked for: {key}" for key in strays]
    return problems, {"witnesses": len(witnesses.events), "incarnations": len(finals)}


async def left_behind(client: Client, agent: AgentProcess, witnesses: Witnesses) -> list[str]:
    """What is on host and bus that should not be, the agent at rest."""
    problems = []
    try:
        async with asyncio.timeout(20):
            while any(r.state is VmState.DELETED for r in _records(agent)):
                await asyncio.sleep(0.2)
            while list((agent.data_dir / "spool").glob("*.frames")):
                await asyncio.sleep(0.1)
    except TimeoutError:
        problems.append("deleted VMs or spooled frames do not go away")
    problems += discrepancies(
        agent.data_dir, uid_base=_UID_BASE, vm_ids=frozenset(witnesses.events)
    )
    living = {vm for vm, state in witnesses.states.items() if state is not VmState.DELETED}
    if {r.vm_id for r in _records(agent)} != living:
        problems.append(f"{len(_records(agent))} records of {len(living)} VMs")
    info = await client.bus.js.consumer_info(VM_COMMANDS, f"agent-{HOST}")
    if info.num_pending or info.num_ack_pending:
        problems.append(f"{info.num_pending} commands wait, {info.num_ack_pending} are not acked")
    return problems


def overgrown(early: Vitals, late: Vitals) -> list[str]:
    """What has grown since the first tenth of the messages."""
    problems = []
    most_kib = early.rss_kib * (100 + _GROWTH_OF_100) // 100 + _GROWTH_KIB
    if late.rss_kib > most_kib:
        problems.append(f"memory grew from {early.rss_kib} to {late.rss_kib} KiB")
    if late.descriptors > early.descriptors + 4:
        problems.append(f"descriptors grew from {early.descriptors} to {late.descriptors}")
    if late.threads > early.threads + 4:
        problems.append(f"threads grew from {early.threads} to {late.threads}")
    return problems


def _records(agent: AgentProcess) -> list[Any]:
    return list(RecordStore(agent.data_dir / "vms").load())
