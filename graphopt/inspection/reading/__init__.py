"""What a graph computes: its nodes as one flow of values, and the optimizer found in them."""
