"""fs3: the shared library of a distributed POSIX file system for AI clusters."""
