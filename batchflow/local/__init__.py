"""The local cloud: Service Bus, Batch and Blob on loopback, behind the unmodified Azure SDKs."""
