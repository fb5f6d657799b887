"""What keeps Python's memory from costing a service time."""

from __future__ import annotations

import gc

_OFTEN_LOOKED_AT = 200_000
_GENERATIONS = 10


def spare_the_collector(
    young_objects: int = _OFTEN_LOOKED_AT, generations: int = _GENERATIONS
) -> None:
    """Let the garbage collector pass over what is here for good, and come seldom.

    Frames in hand are tens of thousands of objects that live for a second and go by reference
    counting. To look through them every 700 allocations, as is usual, doubles the cost of taking
    one in: 22 µs instead of 11 with 20,000 frames in hand. And a full collection of all modules and
    a thousand VMs takes tens of ms, in the middle of a tick if it so happens.

    Args:
        young_objects: So many new ones, and the youngest generation is looked through.
        generations: So many times, and the next older one is as well.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(young_objects, generations, generations)
