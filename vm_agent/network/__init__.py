"""What connects VMs: interfaces, addresses, routes and rules."""
