"""The agent: one per host. Turns commands into VMM processes and VMM processes into samples.

It promises that a command has one effect however often it is delivered, that a slow VM never
holds up another one, and that what a VM used is counted once and to the unit.
"""
