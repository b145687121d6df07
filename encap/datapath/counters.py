"""What went through, counted: of one peer, or of several together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Packets (super-packets count as one) and bytes of the overlay, both ways."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0

    def add(self, other: Counters) -> None:
        """Add another's numbers."""
        self.sent += other.sent
        self.sent_bytes += other.sent_bytes
        self.received += other.received
        self.received_bytes += other.received_bytes
