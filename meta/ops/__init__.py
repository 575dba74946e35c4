"""The namespace operations, one module each."""
