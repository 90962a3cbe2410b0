"""What goes wrong with a training graph, or may."""
