"""The life of a service process: settings, telemetry, probes, bus, work, orderly end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from runtime.bus import Bus
from runtime.errors import FatalError, SettingsError
from runtime.health import Health, serve_probes
from runtime.settings import CommonSettings, load
from runtime.telemetry import configure_logging, configure_telemetry, shutdown_telemetry

_log = structlog.get_logger("decisec.service")

EXIT_FATAL = 1
EXIT_CONFIG = 78
"""`EX_CONFIG` of sysexits.h: restarting without changing the settings is of no use."""

_STARTING = "start"

S = TypeVar("S", bound=CommonSettings)


@dataclass(frozen=True, slots=True)
class Service(Generic[S]):
    """What a service's main gets.

    Attributes:
        stop: Set when the process was asked to end; main then finishes what is in flight.
    """

    name: str
    settings: S
    bus: Bus
    health: Health
    stop: asyncio.Event


Main = Callable[[Service[S]], Coroutine[None, None, None]]


def run(name: str, kind: type[S], main: Main[S]) -> int:
    """Run a service until a signal or a fatal error; returns the process's exit code.

    Args:
        name: Section of its settings, such as `agent`.
        kind: Its settings.
        main: Works until `service.stop` is set, then stops fetching, finishes, flushes, acks
            and returns. The bus is drained afterwards.
    """
    try:
        settings = load(kind, name)
    except SettingsError as error:
        configure_logging(name)
        _log.error("settings.refused", error=str(error))
        return EXIT_CONFIG
    configure_logging(name, settings.log_level)
    configure_telemetry(name, settings.otlp_endpoint)
    try:
        return asyncio.run(_run(name, settings, main))
    finally:
        shutdown_telemetry()


async def _run(name: str, settings: S, main: Main[S]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health = Health()
    # Until main has named its own parts, there is nothing that could be ready.
    health.unready(_STARTING, "the service is starting")
    code = EXIT_FATAL
    try:
        async with (
            serve_probes(health, settings.http_host, settings.http_port),
            Bus.connect(settings, name=name, health=health, stop=stop) as bus,
        ):
            _log.info("service.started", pid=os.getpid())
            work = main(Service(name, settings, bus, health, stop))
            await _until_stopped(work, stop, settings.grace_s, health)
        _log.info("service.stopped")
        code = 0
    except* FatalError as group:
        for error in _leaves(group):
            _log.error("service.failed", error=str(error))
            if isinstance(error, SettingsError):
                code = EXIT_CONFIG
    except* Exception:  # noqa: BLE001 - the last line of defence: log whole, exit non-zero
        _log.exception("service.crashed")
    return code


async def _until_stopped(
    work: Coroutine[None, None, None], stop: asyncio.Event, grace_s: float, health: Health
) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work, name="main")
        waiter = group.create_task(stop.wait(), name="stop")
        # One turn of the loop: main runs up to its first wait, and says what is not ready yet.
        await asyncio.sleep(0)
        health.ready(_STARTING)
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            _log.info("service.stopping", grace_s=grace_s)
        waiter.cancel()
        _, late = await asyncio.wait({task}, timeout=grace_s)
        if late:
            left = sorted(t.get_name() for t in asyncio.all_tasks() if not t.done())
            _log.error("service.abandoned", tasks=len(left), names=left[:20])
            task.cancel()
            raise FatalError(f"{len(left)} tasks did not finish within {grace_s} s")


def _leaves(group: BaseExceptionGroup[FatalError]) -> list[FatalError]:
    found: list[FatalError] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found.extend(_leaves(error))
        else:
            found.append(error)
    return found
