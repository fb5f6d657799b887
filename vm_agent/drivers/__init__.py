"""Hypervisor drivers: one VMM process per VM, behind one interface."""
