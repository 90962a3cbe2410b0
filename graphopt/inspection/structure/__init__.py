"""What a graph is made of: stages, layers, buckets, state, and what a caller feeds and gets."""
