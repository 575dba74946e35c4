"""The client library: everything a mount does, without FUSE."""
