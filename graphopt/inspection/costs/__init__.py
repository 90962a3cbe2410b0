"""What a step costs: operations, bytes moved, and memory."""
