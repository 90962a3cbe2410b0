"""What CUDA does with graphopt's graphs, proved and measured: ``python -m tools.gpu``."""
