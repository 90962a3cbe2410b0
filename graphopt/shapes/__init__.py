"""One shape inference, for gradients and inspection."""
