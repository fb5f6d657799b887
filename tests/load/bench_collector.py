"""How fast the collector decides. Prints JSON: samples per second of one core, without the bus.

Each run takes frames of busy VMs from bytes to bytes: decode, check, enrich, encode. The baseline
does the same work sample by sample on JSON, measured on the same machine right afterwards; take
the ratio, not the absolute.

    python -m tests.load.bench_collector --seconds 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np

from collector.messages import Intake, Now
from collector.pipeline import Pipeline, Rules
from runtime.telemetry import configure_logging
from schemas.frames import Frame, encode_frame
from schemas.ids import new_id
from schemas.subjects import METRICS_RAW, metrics_raw, vm_key
from schemas.units import NS_PER_MS, NS_PER_S, TICK_MS
from schemas.vms import METERS, VmRecord
from tests.support.frames import HOST, busy_frames, record

SIZES = (20, 100, 1000)
_START_MS = 1_760_000_000_000
_NOW_NS = (_START_MS + 86_400_000) * NS_PER_MS
_ROUNDS = 5


class Prepared(NamedTuple):
    """Frames of one host, and the records of its VMs."""

    frames: list[Frame]
    records: list[VmRecord]


def prepare(vms: int) -> Prepared:
    """About 40,000 samples."""
    vm_ids = [new_id() for _ in range(vms)]
    frames = list(busy_frames(vm_ids, max(40, 40_000 // vms), start_ms=_START_MS))
    return Prepared(frames, [record(v, customer=f"c{i % 7}") for i, v in enumerate(vm_ids)])


def columnar(prepared: Prepared) -> Callable[[], int]:
    """The collector's own pipeline; a call does all frames and returns the samples passed."""
    intakes = [
        Intake(metrics_raw(HOST), encode_frame(frame), METRICS_RAW, number, False)
        for number, frame in enumerate(prepared.frames, 1)
    ]
    now = Now(_NOW_NS, NS_PER_S)

    def run() -> int:
        # A fresh one each time: to a used one the same frames would be replays.
        pipeline = Pipeline(Rules())
        for one in prepared.records:
            pipeline.specs.change(vm_key(one.customer_id, one.vm_id), one)
        return sum(pipeline.process(intake, now).samples for intake in intakes)

    return run


def sample_by_sample(prepared: Prepared) -> Callable[[], int]:
    """The same decisions on one JSON message per sample."""
    messages = [json.dumps(sample) for frame in prepared.frames for sample in _samples(frame)]
    owners = {
        str(r.vm_id): (r.host_id, r.customer_id, r.pool, r.price_plan, r.spec.vcpus)
        for r in prepared.records
    }

    def run() -> int:
        last: dict[tuple[str, int], dict[str, Any]] = {}
        passed = 0
        for message in messages:
            sample = json.loads(message)
            owner = owners.get(sample["vm_id"])
            if owner is None or owner[0] != sample["host"]:
                continue
            if sample["tick_ms"] * NS_PER_MS > _NOW_NS + 5 * NS_PER_S:
                continue
            key = (sample["vm_id"], sample["incarnation"])
            before = last.get(key)
            if before is not None:
                if any(sample[meter] < before[meter] for meter in METERS):
                    continue
                elapsed_ns = (sample["tick_ms"] - before["tick_ms"]) * NS_PER_MS
                used_ns = sample["cpu_ns"] - before["cpu_ns"]
                if used_ns > (owner[4] + 2) * elapsed_ns + 250 * NS_PER_MS:
                    continue
            last[key] = sample
            _, customer, pool, plan, vcpus = owner
            json.dumps(
                sample | {"customer": customer, "pool": pool, "price_plan": plan, "vcpus": vcpus}
            )
            passed += 1
        return passed

    return run


def _samples(frame: Frame) -> list[dict[str, Any]]:
    columns = {meter: np.frombuffer(getattr(frame, meter), "<u8").tolist() for meter in METERS}
    return [
        {
            "host": frame.host,
            "vm_id": str(UUID(bytes=frame.vm_ids[16 * row : 16 * row + 16])),
            "incarnation": 1,
            "tick_ms": frame.tick_ms,
            **{meter: column[row] for meter, column in columns.items()},
        }
        for row in range(frame.rows)
    ]


def rate(run: Callable[[], int], expected: int, seconds: float) -> int:
    """Samples per second of CPU: the median of several rounds, after one to warm up."""
    run()
    rates = []
    for _ in range(_ROUNDS):
        passed, began, until = 0, time.process_time(), time.perf_counter() + seconds / _ROUNDS
        while True:
            done = run()
            if done != expected:
                raise RuntimeError(f"{done} of {expected} samples passed")
            passed += done
            if time.perf_counter() >= until:
                break
        rates.append(passed / (time.process_time() - began))
    return int(median(rates))


def main() -> int:
    """Measure all sizes and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="per figure")
    arguments = parser.parse_args()
    configure_logging("bench", "warning")
    result: dict[str, dict[str, float]] = {}
    for vms in SIZES:
        prepared = prepare(vms)
        expected = sum(frame.rows for frame in prepared.frames)
        ours = rate(columnar(prepared), expected, arguments.seconds)
        baseline = rate(sample_by_sample(prepared), expected, arguments.seconds)
        result[str(vms)] = {
            "samples_per_s": ours,
            "frames_per_s": ours // vms,
            "hosts_at_10_hz": ours // vms * TICK_MS // 1000,
            "baseline_json_samples_per_s": baseline,
            "ratio": round(ours / baseline, 1),
        }
    sys.stdout.write(json.dumps({"vms_per_frame": result}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
