"""The whole stack on one machine: supervised processes, one state directory, nothing left over."""
