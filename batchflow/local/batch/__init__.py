"""The local Azure Batch service."""
