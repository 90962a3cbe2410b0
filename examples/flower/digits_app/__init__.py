"""A Flower App: digits, learnt by ten clients of which none shows its own."""
