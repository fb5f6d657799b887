"""Names of the agent's metrics, declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from opentelemetry.metrics import CallbackOptions, Observation

from runtime.telemetry import meter


class Telemetry:
    """The agent's instruments."""

    def __init__(self) -> None:
        instruments = meter()
        self.ticks = instruments.create_counter("decisec_agent_ticks", description="Ticks sampled")
        self.tick_lateness = instruments.create_histogram(
            "decisec_agent_tick_lateness",
            unit="s",
            description="Begin of a tick after its due time",
        )
        self.tick_duration = instruments.create_histogram(
            "decisec_agent_tick_duration", unit="s", description="Reading and framing one tick"
        )
        self.ticks_missed = instruments.create_counter(
            "decisec_agent_ticks_missed", description="Ticks that fell out, counted in a frame"
        )
        self.counters_held = instruments.create_counter(
            "decisec_agent_counters_held",
            description="Readings below an earlier one, held at the earlier one",
        )
        self.refreshes_failed = instruments.create_counter(
            "decisec_agent_refreshes_failed", description="VMMs that did not tell their counters"
        )
        self.vmms_hung = instruments.create_counter(
            "decisec_agent_vmms_hung", description="VMMs ended because they did not answer"
        )
        self.frames_published = instruments.create_counter(
            "decisec_agent_frames_published", description="Frames that NATS has acknowledged"
        )
        self.frames_spooled = instruments.create_counter(
            "decisec_agent_frames_spooled", description="Frames written to disk to be sent later"
        )
        self.frames_dropped = instruments.create_counter(
            "decisec_agent_frames_dropped", description="Frames given up, oldest first"
        )
        self.commands = instruments.create_counter(
            "decisec_agent_commands", description="Commands by verb and outcome"
        )
        self.refused = instruments.create_counter(
            "decisec_agent_refused",
            description="Messages refused, by door (command, question) and reason",
        )
        self.commands_redelivered = instruments.create_counter(
            "decisec_agent_commands_redelivered",
            description="Commands that came again although they were answered",
        )
        self.questions = instruments.create_counter(
            "decisec_agent_questions", description="Questions answered, by outcome"
        )
        self.audit_lost = instruments.create_counter(
            "decisec_agent_audit_entries_lost", description="Audit entries given up"
        )
        self.network_comparison = instruments.create_histogram(
            "decisec_agent_network_comparison",
            unit="s",
            description="Comparing links, routes and rules with what they should be",
        )
        self.network_comparisons_failed = instruments.create_counter(
            "decisec_agent_network_comparisons_failed",
            description="Comparisons that the kernel refused",
        )
        self.network_repairs = instruments.create_counter(
            "decisec_agent_network_repairs", description="What was put right, by kind"
        )
        self.network_dropped = instruments.create_counter(
            "decisec_agent_network_dropped", description="Packets dropped, by reason"
        )
        self.network_abuse = instruments.create_counter(
            "decisec_agent_network_abuse_suspected",
            description="Times that so much of a VM was dropped that its owner was told",
        )
        self.network_taps_lost = instruments.create_counter(
            "decisec_agent_network_taps_lost",
            description="Taps of running VMs that somebody took away",
        )
        self.heartbeats_failed = instruments.create_counter(
            "decisec_agent_heartbeats_failed", description="Heartbeats that could not be written"
        )

    def watch_vms(self, by_state: Callable[[], Mapping[str, int]]) -> None:
        """Show the number of VMs per state."""

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(n, {"state": state}) for state, n in by_state().items()]

        meter().create_observable_gauge(
            "decisec_agent_vms", callbacks=[observe], description="VMs by state"
        )

    def watch_backlog(self, frames: Callable[[], int]) -> None:
        """Show the number of frames that NATS has not acknowledged yet."""
        meter().create_observable_gauge(
            "decisec_agent_frames_waiting",
            callbacks=[lambda _options: [Observation(frames())]],
            description="Frames not acknowledged yet, in memory and on disk",
        )
