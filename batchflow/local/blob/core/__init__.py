"""The state of the local Blob service and its REST contract. Pure: no I/O, no clock."""
