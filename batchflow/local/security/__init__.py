"""Keys, tokens and certificates of the local cloud."""
