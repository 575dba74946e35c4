"""fs3 where other libraries expect a storage system: fsspec, and torch's data sets and checkpoints. Each module needs its
library, and nothing else in fs3 does."""
