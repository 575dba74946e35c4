"""The metadata daemon: inodes and directory entries over a key-value store."""
