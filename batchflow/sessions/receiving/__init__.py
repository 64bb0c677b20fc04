"""What comes back: results are received, checkpointed, and completed."""
