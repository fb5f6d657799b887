"""Storms of commands: many short lives of VMs, each carried out, ended and billed, or told of."""
