"""What pools and sessions may cost, and what a pool has cost. Pure."""
