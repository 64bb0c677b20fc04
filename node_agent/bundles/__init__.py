"""Bundles on a node's disk: the cache and the working directories."""
