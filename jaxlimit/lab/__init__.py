"""What experiments, benchmarks and the command share; nothing of the numerics imports it."""
