"""Small pieces that know neither Azure nor tasks: task groups, waiting, backoff, closing, frozen values."""
