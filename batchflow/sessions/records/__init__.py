"""What the parts of a session share and record: its tasks, outcomes, problems, notices, and counts."""
