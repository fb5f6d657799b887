"""The whole stack as separate processes that a test can kill and start again, one by one.

Unlike `decisec dev`, which ends when a child dies, this one lets the test decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from decisec.dev.child import Child, ChildSpec
from decisec.dev.guest import IMAGE, allowed_args
from decisec.dev.leftovers import marked_processes
from decisec.dev.programs import STOP_ORDER, Ports, Programs
from decisec.dev.readiness import accepts_connections, says_ready
from decisec.dev.state import StateDir
from decisec.dev.tokens import development_token
from decisec.sdk import AsyncClient
from runtime.bus import Bus
from runtime.settings import CommonSettings
from runtime.streams import apply, declared
from vm_agent.images import ImageStore

START_ORDER = ("nats-server", "collector", "batcher", "agent", "gateway")


class KillableStack:
    """Every process of a stack, by the names of `START_ORDER`.

    Args:
        root: Where its state is.
        driver: The agent's.
        guest: A kernel for the image.
        firecracker: The binary.
        settings: More environment, by process.
    """

    def __init__(
        self,
        root: Path,
        *,
        driver: str,
        guest: Path,
        firecracker: Path | None = None,
        settings: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.state = StateDir(root)
        self.ports = Ports.choose()
        self.programs = Programs(self.state, self.ports)
        self.key = b""
        self.driver = driver
        self._guest = guest
        self._firecracker = firecracker
        self._settings = settings or {}
        self._children: dict[str, Child] = {}
        self._said: list[str] = []

    def _spec(self, name: str) -> ChildSpec:
        match name:
            case "nats-server":
                return self.programs.nats_server()
            case "agent":
                return self.programs.agent(self.driver, self._firecracker)
            case "collector":
                return self.programs.collector()
            case "batcher":
                return self.programs.batcher()
            case "gateway":
                return self.programs.gateway()
        raise KeyError(name)

    async def start(self, name: str) -> None:
        """Start one process and wait until it is ready."""
        spec = self._spec(name)
        spec = replace(spec, env={**spec.env, **self._settings.get(name, {})})
        child = self._children[name] = Child(spec)
        ready = (
            accepts_connections(self.ports.nats)
            if name == "nats-server"
            else says_ready(getattr(self.ports, name))
        )
        async with asyncio.timeout(60):
            while why := await ready():
                if child.exit_code is not None:
                    tail = "\n".join(child.log_tail())
                    raise RuntimeError(f"{name} ended with {child.exit_code} ({why}):\n{tail}")
                await asyncio.sleep(0.05)

    async def kill(self, name: str) -> None:
        """SIGKILL, and wait for the end."""
        child = self._children.pop(name)
        child.stopping = True
        child.kill()
        await child.exited()

    async def stop(self, name: str) -> int:
        """SIGTERM, and wait for the end; returns the exit code."""
        child = self._children.pop(name)
        await child.stop(asyncio.Event(), self._said.append)
        return await child.exited()

    def log(self, name: str) -> str:
        """What a process has logged since it was last started."""
        return (self.state.logs / f"{name}.log").read_text(errors="replace")

    def pids(self, *names: str) -> dict[str, int]:
        """Process ids of running parts, by name."""
        return {name: self._children[name].pid for name in names}

    def client(self, customer: str) -> AsyncClient:
        """The API as one customer."""
        return AsyncClient(base_url=self.ports.api_url, token=development_token(self.key, customer))

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """A connection for looking on."""
        async with Bus.connect(CommonSettings(nats_url=self.ports.nats_url), name="test") as bus:
            yield bus

    async def end(self) -> None:
        """Stop what runs, last what others depend on."""
        for name in STOP_ORDER[:2]:
            if name in self._children:
                await self.stop(name)
        reaper = Child(self.programs.reap())
        await reaper.exited()
        for name in STOP_ORDER[2:]:
            if name in self._children:
                await self.stop(name)
        left = marked_processes(str(self.state.root))
        assert not left, f"left running: {left}"


@asynccontextmanager
async def killable_stack(
    root: Path,
    *,
    driver: str,
    guest: Path,
    firecracker: Path | None = None,
    settings: Mapping[str, Mapping[str, str]] | None = None,
) -> AsyncIterator[KillableStack]:
    """A running stack for the length of the block; nothing of it is left afterwards."""
    stack = KillableStack(
        root, driver=driver, guest=guest, firecracker=firecracker, settings=settings
    )
    async with running(stack, START_ORDER, guest):
        yield stack


@asynccontextmanager
async def metering_stack(
    root: Path, *, start: tuple[str, ...] = START_ORDER[:3], **batcher: str
) -> AsyncIterator[KillableStack]:
    """The same without anything that runs VMs: what frames go through, and what stores them.

    Args:
        root: Where its state is.
        start: What runs from the beginning.
        batcher: Settings of the batcher.
    """
    settings = {"batcher": {f"DECISEC_BATCHER_{k.upper()}": v for k, v in batcher.items()}}
    stack = KillableStack(root, driver="simulator", guest=root, settings=settings)
    async with running(stack, start, None):
        yield stack


@asynccontextmanager
async def running(
    stack: KillableStack, names: tuple[str, ...], guest: Path | None
) -> AsyncIterator[None]:
    async with AsyncExitStack() as exits:
        exits.enter_context(stack.state.held())
        stack.key = stack.state.key()
        if guest is not None:
            images = ImageStore(stack.state.agent / "images")
            images.add(IMAGE, guest, allowed_args=allowed_args(stack.driver))
        exits.push_async_callback(stack.end)
        for name in names:
            await stack.start(name)
            if name == "nats-server":
                async with stack.bus() as bus:
                    await apply(bus, declared())
        yield
