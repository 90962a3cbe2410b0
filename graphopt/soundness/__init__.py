"""Whether a model that nobody vouches for can be relied on."""
