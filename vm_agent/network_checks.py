"""Whether a VM can be reached, looked at when its owner asks."""

from __future__ import annotations

import structlog

from schemas.network_checks import NetworkCheck
from schemas.vms import VmState
from vm_agent.network.probes import ETHER_BYTES
from vm_agent.network.taps import NetworkError
from vm_agent.network.verdicts import findings, proven, stopped, summary
from vm_agent.ports import Networks
from vm_agent.store import Record

_log = structlog.get_logger("decisec.network")


class NetworkChecks:
    """Looks at VMs' paths.

    Args:
        networks: What connects them.
    """

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    async def of(self, record: Record) -> NetworkCheck:
        """What is found of a VM; takes at most two seconds.

        One that does not run is sent nothing.

        Raises:
            NetworkError: The kernel refuses.
        """
        reason = self._lacking(record)
        if reason:
            return NetworkCheck(
                vm_id=record.vm_id,
                state=record.state,
                proven=False,
                summary=f"{reason}; nothing was sent",
                quarantined=record.quarantined,
            )
        lease = record.lease
        if lease is None:
            raise NetworkError("it has no lease")
        facts = await self._networks.examine(lease.tap)
        if lacking := (*facts.host, *facts.amiss.fabric):
            # No business of the VM's owner, who is told how many there are.
            _log.warning("network.found_incomplete", missing=lacking)
        found = findings(facts)
        frames = sum(one.times for one in facts.sent)
        packets = sum(one.times * one.probe.packet_bytes for one in facts.sent)
        return NetworkCheck(
            vm_id=record.vm_id,
            state=record.state,
            proven=proven(facts, found),
            summary=summary(facts, found),
            quarantined=facts.vm.quarantined,
            addresses=tuple(dict.fromkeys(one.probe.about for one in facts.sent)),
            findings=found,
            stopped=stopped(facts),
            sent_frames=frames,
            sent_bytes=packets + frames * ETHER_BYTES,
        )

    def _lacking(self, record: Record) -> str:
        """Why a VM cannot be reached, whatever stands; empty if it may be."""
        if not record.spec.network:
            return "it has no network interface: it was made so"
        if not self._networks.connects:
            return "its host connects no VMs"
        if record.state is not VmState.RUNNING:
            return f"it is {record.state.value}"
        if record.lease is None or record.nic is None or not record.nic.fabric:
            return "it is not connected: its host connected no VMs when it was started"
        return ""
