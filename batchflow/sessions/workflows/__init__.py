"""Tasks that wait for others: which ones, until when, and what they get."""
