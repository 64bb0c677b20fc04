"""The agent's links to Service Bus: tasks in, results out, locks renewed."""
