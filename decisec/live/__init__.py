"""Looking at VMs while they run: frames from the bus become rates, rates become a table."""
