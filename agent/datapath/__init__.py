"""The agent's side of the data-plane process: started, fed with peers, watched, stopped."""
