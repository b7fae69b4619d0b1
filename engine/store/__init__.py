"""What is stored, how commands decide and how ops apply; pure."""
