"""What all services share: settings, the bus, telemetry, health, retries and a lifecycle.

It promises that a service starts only with valid settings, says whether it is ready, stops in
order within its grace period, and never loses an error or a message in silence.
"""
