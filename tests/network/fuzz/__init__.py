"""Random frames from a VM, made of the suite's cases."""
