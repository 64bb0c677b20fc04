"""What agents tell of themselves in the pool's containers, as clients read it."""
