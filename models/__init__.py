"""Forward models, and the data they are trained on."""
