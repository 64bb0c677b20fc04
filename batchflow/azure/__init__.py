"""The adaptors to Azure: the only place that imports the azure packages."""
