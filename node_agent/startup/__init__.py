"""The start of an agent process: configuration, connections, assembly of its parts."""
