"""The messages and method ids of mgmtd, meta and storage; no logic."""
