"""Prices of options."""
