"""Opening a file that nobody vouches for: a model to rely on, or an error that says why not."""
