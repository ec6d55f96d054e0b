"""What a training loop holds."""
