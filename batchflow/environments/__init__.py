"""The Python packages that tasks run with: locked and built once by a client, unpacked once on each node."""
