"""The demo from start to verdict."""

from __future__ import annotations

import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
from rich.console import Console

from decisec.cli.exits import Exit
from decisec.demo import audit
from decisec.demo.fleet import Fleet, Window
from decisec.demo.report import Report, compare, judge
from decisec.demo.show import bill, verdict, watch
from decisec.dev.errors import ChildDiedError, StackError
from decisec.dev.interrupts import EXIT_INTERRUPTED, Interrupts
from decisec.dev.leftovers import network_namespaces
from decisec.dev.stack import Stack, StackOptions, running_stack
from decisec.live.feed import following
from runtime.bus import Bus, Message
from schemas.codec import decoder
from schemas.frames import FramesStored
from schemas.subjects import METRICS_STORED
from schemas.usage import UsageReport

_SETTLE_WITHIN_S = 30.0
_decode_stored = decoder(FramesStored)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What a user can choose.

    Attributes:
        seconds: How long the VMs run.
        report: File for the figures.
        as_json: The figures go to stdout as one JSON document, all else to stderr.
    """

    seconds: float
    driver: str
    state_dir: Path
    report: Path
    as_json: bool = False


class Demo:
    """One demo."""

    def __init__(self, options: DemoOptions, interrupts: Interrupts) -> None:
        self._options = options
        self._interrupts = interrupts
        self._console = Console(file=sys.stderr if options.as_json else None, highlight=False)
        if not self._console.is_terminal:
            self._console.width = 200
        self._vms: tuple[UUID, ...] = ()

    def say(self, text: str) -> None:
        """Tell the user of progress."""
        self._console.print(text, markup=False, soft_wrap=True)

    async def run(self) -> int:
        """All of it; returns the exit code."""
        options = self._options
        stack_options = StackOptions(
            state_dir=options.state_dir, driver=options.driver, fresh=True, customer="acme"
        )
        async with running_stack(stack_options, self.say, self._interrupts.hurry) as stack:
            report = await stack.supervisor.guard(self._meter(stack))
        left = [vm for vm in self._vms for name in network_namespaces() if vm.hex in name]
        report = msgspec.structs.replace(report, nothing_left_running=not left)
        self._write(report)
        if left:
            raise StackError(f"{len(left)} network namespaces were left")
        if report.problems:
            self.say("the demo FAILED; see the problems above")
            return Exit.FAILED
        return Exit.OK

    async def _meter(self, stack: Stack) -> Report:
        lags_ms: list[int] = []

        async def on_stored(message: Message) -> None:
            lags_ms.extend(_decode_stored(message.data).lags_ms)

        async with AsyncExitStack() as exits:
            fleet = await exits.enter_async_context(Fleet(stack.endpoint.api_url, stack.token))
            live = await exits.enter_async_context(following(stack.bus, frozenset(fleet.customers)))
            began = time.monotonic()
            start = _second(datetime.now(UTC))
            await fleet.create()
            self._vms = fleet.vms
            reporting = await stack.bus.subscribe(METRICS_STORED, on_stored)
            exits.push_async_callback(reporting.unsubscribe)
            await fleet.boot()
            self.say(
                f"{len(fleet.vms)} VMs of {' and '.join(fleet.customers)} created and booted in "
                f"{time.monotonic() - began:.1f} s"
            )
            await watch(live, fleet.names, self._options.seconds, self._console)
            began = time.monotonic()
            await fleet.shut_down()
            self.say(f"all VMs shut down in {time.monotonic() - began:.1f} s")
            # A whole window: the first second before the first sample, the one after the last.
            window = Window(start, _second(datetime.now(UTC)) + timedelta(seconds=2))
            reports = await fleet.settled_usage(window, _SETTLE_WITHIN_S)
            bill(reports, fleet.names, self._console)
            report = await self._judge(stack, stack.bus, fleet, reports, lags_ms)
        verdict(report, self._console)
        return report

    async def _judge(
        self, stack: Stack, bus: Bus, fleet: Fleet, reports: list[UsageReport], lags_ms: list[int]
    ) -> Report:
        raw = await audit.audit_raw(bus)
        counted = await audit.final_counters(bus)
        return judge(
            host=stack.host,
            seconds=self._options.seconds,
            vms=len(fleet.vms),
            audit=raw,
            rejected=await audit.rejected(bus),
            usage=compare(reports, counted, fleet.names),
            reports=reports,
            jitter=audit.quantiles(raw.late_ms),
            lag=audit.quantiles(lags_ms),
        )

    def _write(self, report: Report) -> None:
        content = msgspec.json.format(msgspec.json.encode(report)) + b"\n"
        self._options.report.parent.mkdir(parents=True, exist_ok=True)
        self._options.report.write_bytes(content)
        self.say(f"figures written to {self._options.report}")
        if self._options.as_json:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()


async def run_demo(options: DemoOptions) -> int:
    """Run a demo; Ctrl-C at any moment cleans up.

    Returns:
        0 only if all is conserved, nothing was rejected, no sequence number is missing and at
        least 99 % of the ticks are stored; 130 after Ctrl-C.
    """
    interrupts = Interrupts()
    demo = Demo(options, interrupts)
    with interrupts.caught():
        try:
            code = await interrupts.run(demo.run())
        except ChildDiedError as error:
            for text in error.log_tail:
                demo.say(f"  {error.name} | {text}")
            raise
    return EXIT_INTERRUPTED if code is None else code


def _second(at: datetime) -> datetime:
    """The whole second that an instant lies in."""
    return at.replace(microsecond=0)
