"""What a session records beside its tasks: what it has asked of the broker, and what it has stored."""
