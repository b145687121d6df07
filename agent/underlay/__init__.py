"""The interface and addresses that reach the other hosts: chosen, and followed when they change."""
