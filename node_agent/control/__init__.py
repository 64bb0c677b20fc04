"""The agent's documents in Blob Storage: heartbeat, drain orders, cancellations, logs, task events."""
