"""Runs a training graph, and compares it with RMSProp in NumPy and with its own loss."""
