"""The kernel brought to what registry and configuration say, and kept there."""
