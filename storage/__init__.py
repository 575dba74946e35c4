"""The storage daemon: chunks replicated over CRAQ chains."""
