"""The agent's decisions: events in, commands out. Pure: no I/O, no clock."""
