"""Why nothing happens: what is known of a pool, of a session, of an agent's log."""
