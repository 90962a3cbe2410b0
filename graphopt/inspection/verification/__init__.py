"""Runs the update of a graph, and compares it with RMSProp in NumPy."""
