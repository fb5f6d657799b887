"""The demo: five VMs of two customers, metered each 100 ms, billed and audited to the unit."""
