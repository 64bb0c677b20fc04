"""The Python process that runs a task's code."""
