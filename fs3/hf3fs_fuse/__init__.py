"""The Python interface of 3FS's user-space rings, on fs3: engines that import `hf3fs_fuse.io` run on it as they are.

Installed with fs3 as a top-level package, so the library is imported absolutely here.
"""
