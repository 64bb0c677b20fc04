"""Running tasks: slots, Python workers, programs, limits, outcomes."""
