"""AMQP 1.0 for servers, sans-IO: types and frames, messages, and the state of a connection."""
