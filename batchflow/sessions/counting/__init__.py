"""What a session asks of the broker, counted."""
