"""Networks that nobody here wrote, exported, trained and compared with PyTorch."""
