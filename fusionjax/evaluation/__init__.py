"""How well faces are kept: metrics, the mini world's recogniser, the suite and its tables."""
