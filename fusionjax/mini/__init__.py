"""The mini world: drawn people in drawn places. No JAX."""
