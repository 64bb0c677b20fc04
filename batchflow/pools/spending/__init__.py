"""What a pool costs: what its agents have used, prices, and budgets."""
