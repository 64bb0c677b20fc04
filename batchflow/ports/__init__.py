"""What batchflow needs of the three services: protocols and their values, without any implementation."""
