"""What is different between two training graphs."""
