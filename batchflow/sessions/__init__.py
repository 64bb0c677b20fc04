"""The machinery of one session: sending tasks, receiving results, checkpoints, cancellation, health."""
