"""The packet filter's rules brought there and kept, and what others' rules drop."""
