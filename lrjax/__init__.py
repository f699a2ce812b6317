"""Low-rank matrix recovery and sensing in JAX."""
