"""Leases: our own claimed, kept and given back, everybody's followed."""
