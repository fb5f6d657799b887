"""A flood of metrics from hosts that do not exist, and the proof that none of it was lost."""
