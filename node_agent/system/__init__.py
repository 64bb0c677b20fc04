"""Linux processes, files and logs, as the agent uses them."""
