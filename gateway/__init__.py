"""The front door: authenticates, authorises, places, and puts commands on the bus.

It promises that what it refuses has had no effect, that a customer sees only its own VMs, and
that an accepted command is stored before the caller hears of it.
"""
