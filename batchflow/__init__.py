"""Interactive task execution on Azure Batch, asyncio-native."""
