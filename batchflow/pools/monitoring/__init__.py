"""What goes to Log Analytics: rows of tasks, nodes and logs, gathered and sent beside the work."""
