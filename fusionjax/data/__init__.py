"""Datasets, the input pipeline, photo preparation and the mini world."""
