"""The state of one local Batch account: pools, nodes, jobs and tasks. Pure: no I/O, no clock."""
