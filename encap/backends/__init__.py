"""The backends: from a lease to what it needs of the kernel or of the data plane. Pure."""
