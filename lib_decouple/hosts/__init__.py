"""One thin adapter for each host; none knows another."""
