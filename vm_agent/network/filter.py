"""The host's packet filter: base rules once, and for each VM what it adds, a transaction each.

Nothing here runs while packets do: what is installed stays in force when the agent is dead. A tap
without its entries is dropped by the base rules; without base rules no tap may be attached.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping

from vm_agent.network import checksums, shortcut, standing
from vm_agent.network.attachment import Attachment
from vm_agent.network.drops import Count, Drops
from vm_agent.network.nft import Nft, NftError
from vm_agent.network.plan import FabricPlan
from vm_agent.network.rules.base import PLACES, TABLES, fingerprint, render
from vm_agent.network.rules.entries import Entry, entries

_NOTHING: frozenset[Entry] = frozenset()
_HOOKS = "list table netdev decisec"
_DROP_SETS = (("netdev", "drops"), ("inet", "drops"), ("inet", "pairs"))


class Filter:
    """Rules in one network namespace, compared and changed as sets of entries.

    All verbs may be repeated, and a cancelled one has either happened or not. They wait for each
    other. Each raises `NftError` where the kernel refuses, and then nothing has changed.

    Args:
        nft: A session in the fabric's namespace; who made it closes it.
    """

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._lock = asyncio.Lock()
        self._standing: dict[str, frozenset[Entry]] | None = None
        self._installed = ""

    async def install(self, plan: FabricPlan, vms: Iterable[Attachment] = ()) -> bool:
        """Put the base rules in force, unless just these are. Returns whether they were not.

        Whether they are is read from the kernel: also what somebody took out of them is noticed.
        Other base rules, of an older agent or another plan, are replaced in one transaction
        together with all `vms` whose taps exist, so that there is no moment without rules. A VM
        that is not given is cut off until it is added. Drop counts go on.
        """
        base = render(plan)
        seal = f"base_{fingerprint(base)}"
        async with self._lock:
            self._installed = seal
            tables = await self._tables()
            if tables == set(TABLES) and await self._untouched(seal):
                return False
            drops = await self._counted_before()
            await self._fill_checksums()
            present = await self._nft.in_thread(_interfaces)
            wanted = {vm.tap: entries(vm) for vm in vms if vm.tap in present}
            commands = [f"delete table {table}" for table in TABLES if table in tables]
            commands += [base, f"table inet decisec {{ chain {seal} {{ }}\n }}"]
            commands += _additions(entry for own in wanted.values() for entry in own)
            commands += _resumed(drops, set(wanted) | {plan.uplink})
            await self._nft.run("\n".join(commands))
            await self._nft.run(f"table inet decisec {{ chain {await self._seal()} {{ }}\n }}")
            self._standing = wanted
            return True

    async def uninstall(self) -> None:
        """Take all of it away; every tap is open then, so only after they are gone."""
        async with self._lock:
            tables = await self._tables()
            if tables:
                await self._nft.run("\n".join(f"delete table {table}" for table in sorted(tables)))
            self._standing = None

    async def add(self, vm: Attachment) -> None:
        """Put a VM's rules in force, on a tap that has just come, and should be down until then.

        Rules that stand for a former tap of the name are replaced: they may have lost their hook.
        Kernels before 6.16 refuse where the tap does not exist; later ones wait for it.
        """
        await self._apply({vm.tap: entries(vm)}, anew=True)

    async def change(self, vm: Attachment) -> None:
        """Put in force what is different now: addresses, peers, ports, quarantine."""
        await self._apply({vm.tap: entries(vm)})

    async def remove(self, tap: str) -> None:
        """Take a VM's rules away, which cuts it off; before its tap, which then needs none."""
        await self._apply({tap: _NOTHING})

    async def reconcile(self, vms: Iterable[Attachment]) -> frozenset[str]:
        """Make the kernel hold just these VMs' rules. Returns the taps it did not hold right.

        Reads the kernel anew. Where one transaction for all fails, each VM has one of its own.

        Raises:
            ExceptionGroup: Of `NftError`, of the VMs that could not be repaired; the others are.
        """
        wanted = {vm.tap: entries(vm) for vm in vms}
        async with self._lock:
            actual = await self._read_standing()
            wrong = {
                tap: wanted.get(tap, _NOTHING)
                for tap in wanted.keys() | actual.keys()
                if wanted.get(tap, _NOTHING) != actual.get(tap, _NOTHING)
            }
            if not wrong:
                return frozenset()
            try:
                await self._transact(wrong)
            except NftError:
                await self._transact_each(wrong)
            return frozenset(wrong)

    async def actual(self) -> Mapping[str, frozenset[Entry]]:
        """What stands in the kernel for each tap, read anew; compare with `entries(vm)`."""
        async with self._lock:
            return dict(await self._read_standing())

    async def wrong(self, vm: Attachment) -> tuple[str, ...]:
        """What of a VM's rules, and of the base rules, does not stand as it should, in words.

        Reads the kernel anew, and changes nothing.
        """
        async with self._lock:
            if await self._tables() != set(TABLES):
                return ("base rules are missing",)
            found = []
            if not await self._untouched(self._installed):
                found.append("the base rules are not those that were installed")
            held, wanted = (await self._read_standing()).get(vm.tap, _NOTHING), entries(vm)
            found += [f"missing: {entry}" for entry in wanted - held]
            found += [f"besides: {entry}" for entry in held - wanted]
            return tuple(sorted(found))

    async def drops(self) -> Drops:
        """What was dropped so far. Counts of taps that are gone are told one last time."""
        async with self._lock:
            drops = await self._drops()
            if self._standing is None:
                await self._read_standing()
            await self._forget(drops)
            return drops

    async def _apply(self, wanted: Mapping[str, frozenset[Entry]], *, anew: bool = False) -> None:
        async with self._lock:
            if self._standing is None or (anew and any(tap in self._standing for tap in wanted)):
                held = await self._read_standing()
                if anew and (left := {tap: _NOTHING for tap in wanted if tap in held}):
                    await self._transact(left)
            try:
                await self._transact(wanted)
            except NftError:
                # Somebody else changed the tables, or a tap went away and took its chain along.
                await self._read_standing()
                await self._transact(wanted)

    async def _transact(self, wanted: Mapping[str, frozenset[Entry]]) -> None:
        held = self._standing
        if held is None:
            raise RuntimeError("nothing was read from the kernel yet")
        gone, new = set[Entry](), set[Entry]()
        for tap, own in wanted.items():
            before = held.get(tap, _NOTHING)
            gone |= before - own
            new |= own - before
        if shortcut.possible([*gone, *new]):
            messages = shortcut.messages(gone, new)
            if messages:
                await self._nft.transact(messages)
        else:
            first, last = _removals(gone)
            await self._nft.run("\n".join((*first, *_additions(new), *last)))
        for tap, own in wanted.items():
            if own:
                held[tap] = own
            else:
                held.pop(tap, None)

    async def _transact_each(self, wanted: Mapping[str, frozenset[Entry]]) -> None:
        errors = []
        for tap, own in wanted.items():
            try:
                await self._transact({tap: own})
            except NftError as error:
                error.add_note(f"the rules of {tap}")
                errors.append(error)
        if errors:
            raise ExceptionGroup("rules that could not be repaired", errors)

    async def _tables(self) -> set[str]:
        objects = await self._nft.read("list tables")
        found = {f"{t['table']['family']} {t['table']['name']}" for t in objects}
        return found & set(TABLES)

    async def _read_standing(self) -> dict[str, frozenset[Entry]]:
        found = standing.read_hooks(await self._nft.read_text(_HOOKS, terse=True))
        found += standing.read_names(await self._nft.read("list chains inet"))
        found += standing.read_names(await self._nft.read("list sets inet", terse=True))
        for family, kind, name in standing.ELEMENTS:
            listed = await self._nft.read(f"list {kind} {family} decisec {name}")
            found += standing.read_elements(listed)
        self._standing = standing.by_tap(found)
        return self._standing

    async def _drops(self) -> Drops:
        drops = Drops()
        for family, name in _DROP_SETS:
            read = standing.read_drops(await self._nft.read(f"list set {family} decisec {name}"))
            for interface, reasons in read.by_tap.items():
                for reason, count in reasons.items():
                    drops.add(interface, reason, count)
            drops.by_pair |= read.by_pair
        return drops

    async def _untouched(self, seal: str) -> bool:
        """Whether all that stands, but for VMs, is what was installed with this mark."""
        chains = await self._nft.read("list chains inet")
        names = {c["chain"]["name"] for c in chains if c["chain"]["table"] == "decisec"}
        try:
            sealed = {seal, await self._seal()} <= names
        except NftError:
            return False  # a set is missing
        return sealed and await self._checksums_filled()

    async def _seal(self) -> str:
        """The name of an empty chain that stands for the base rules as the kernel lists them."""
        texts = [await self._nft.read_text(f"list table {table}", terse=True) for table in TABLES]
        places = [await self._nft.read_text(f"list set inet decisec {name}") for name in PLACES]
        return f"seal_{fingerprint(''.join((*map(standing.base_of, texts), *places)))}"

    async def _checksums_filled(self) -> bool:
        try:
            lists = [await self._nft.read(f"list table {f} mangle") for f in checksums.FAMILIES]
        except NftError:
            return False
        return all(map(checksums.standing, lists))

    async def _fill_checksums(self) -> None:
        """Before the base rules: without this they do not hold. It does no harm alone."""
        if not await self._checksums_filled():
            await self._nft.run(checksums.commands())
            await self._nft.transact(checksums.rules())

    async def _counted_before(self) -> Drops:
        try:
            return await self._drops()
        except NftError:
            return Drops()  # there were no rules, or some that counted otherwise

    async def _forget(self, drops: Drops) -> None:
        """Delete the counts of taps that are gone; a gone tap's do not grow any more."""
        known = (self._standing or {}).keys() | await self._nft.in_thread(_interfaces)

        def gone(name: str) -> bool:
            return standing.TAP_NAME.fullmatch(name) is not None and name not in known

        if not any(map(gone, drops.by_tap)) and not any(gone(t) for p in drops.by_pair for t in p):
            return
        commands = []
        for family, name in _DROP_SETS:
            listed = await self._nft.read(f"list set {family} decisec {name}")
            keys = [key for key in standing.read_counted(listed) if any(map(gone, key))]
            if keys:
                commands.append(f"delete element {family} decisec {name} {{ {_joined(keys)} }}")
        if commands:
            await self._nft.run("\n".join(commands))


def _interfaces() -> frozenset[str]:
    return frozenset(name for _, name in socket.if_nameindex())


def _removals(gone: Iterable[Entry]) -> tuple[list[str], list[str]]:
    """What is to go first, and last: elements name chains, chains name sets."""
    gone = sorted(gone, key=lambda entry: (entry.family, entry.kind, entry.name, entry.key))
    hooks = [e for e in gone if e.kind == "chain" and e.family == "netdev"]
    chains = [e for e in gone if e.kind == "chain" and e.family != "netdev"]
    sets = [e for e in gone if e.kind == "set"]
    first = [f"delete chain {e.family} decisec {e.name}" for e in hooks]
    first += _elements("delete", (e for e in gone if e.kind == "element"))
    last = [f"delete {e.kind} {e.family} decisec {e.name}" for e in (*chains, *sets)]
    return first, last


def _additions(new: Iterable[Entry]) -> list[str]:
    new = sorted(new, key=lambda entry: (entry.family, entry.kind, entry.name, entry.key))
    named = [e for e in new if e.kind == "set"] + [e for e in new if e.kind == "chain"]
    commands = [
        f"table {e.family} decisec {{\n{e.kind} {e.name} {{\n{e.body}\n}}\n}}" for e in named
    ]
    return commands + _elements("add", (e for e in new if e.kind == "element"))


def _elements(verb: str, of: Iterable[Entry]) -> list[str]:
    places: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in of:
        value = f" : {entry.value}" if entry.value and verb == "add" else ""
        places[entry.family, entry.name].append(_joined([entry.key]) + value)
    return [
        f"{verb} element {family} decisec {name} {{ {', '.join(keys)} }}"
        for (family, name), keys in places.items()
    ]


def _joined(keys: Iterable[tuple[str, ...]]) -> str:
    return ", ".join(" . ".join(map(_quoted, key)) for key in keys)


def _quoted(part: str) -> str:
    """Interface names may be words of the language otherwise."""
    return f'"{part}"' if standing.TAP_NAME.fullmatch(part) else part


def _resumed(drops: Drops, interfaces: set[str]) -> list[str]:
    """Commands that let counts go on where they were."""
    elements = []
    for interface, reasons in drops.by_tap.items():
        if interface in interfaces:
            for reason, count in reasons.items():
                elements.append(_counted(f'"{interface}" . {reason.mark:#x}', count))
    pairs = [
        _counted(f'"{one}" . "{other}"', count)
        for (one, other), count in drops.by_pair.items()
        if {one, other} <= interfaces
    ]
    commands = []
    if elements:
        commands.append(f"add element netdev decisec drops {{ {', '.join(elements)} }}")
    if pairs:
        commands.append(f"add element inet decisec pairs {{ {', '.join(pairs)} }}")
    return commands


def _counted(key: str, count: Count) -> str:
    return f"{key} counter packets {count.packets} bytes {count.bytes}"
