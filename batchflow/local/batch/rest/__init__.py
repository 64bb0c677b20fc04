"""The REST contract of Azure Batch: requests, documents, OData, signatures. Pure: no I/O, no clock."""
