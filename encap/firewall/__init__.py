"""The host's packet filters: our rules in nftables or iptables, and what the rules of others do to our packets."""
