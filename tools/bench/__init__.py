"""Measurements of graphopt against its peers: ``make bench``."""
