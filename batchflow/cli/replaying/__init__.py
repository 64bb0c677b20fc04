"""`batchflow replay`: finds a task, fetches what it ran with, and runs it here."""
