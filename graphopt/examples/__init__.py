"""Data and a network to try things with, which come with the package and need nothing else."""
