"""The supervisor, which starts the agent and records its crashes."""
