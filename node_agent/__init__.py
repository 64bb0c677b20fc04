"""The agent: the daemon that runs on every node and executes the tasks of a pool."""
