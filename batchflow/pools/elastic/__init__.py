"""Elastic pools: clients wish for agents, and who may act on Batch brings the pool to what is wished for."""
