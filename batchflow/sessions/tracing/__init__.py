"""Traces, metrics and logs of a session's tasks, by OpenTelemetry's API, where the program has set it up."""
