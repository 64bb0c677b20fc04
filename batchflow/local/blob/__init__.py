"""The local Blob service."""
