"""What the agent and the data-plane process say to each other: values, bytes, and the socket."""
