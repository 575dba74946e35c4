"""Conformance kits that any implementation of a port must pass."""
