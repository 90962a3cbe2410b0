"""Damaged files for all that graphopt reads, ``python -m tools.faults``; and killed runs."""
