"""What kernel and wire should look like, and how to get there."""
