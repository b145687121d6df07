"""Drive the overlay: the asyncio daemon, its options, and the only code that waits."""
