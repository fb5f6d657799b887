"""The collector: checks every sample, says whose it is, finds gaps and silent hosts."""
