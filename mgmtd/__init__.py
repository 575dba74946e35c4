"""The management daemon: nodes, chains, routing."""
