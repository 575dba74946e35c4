"""`fs3 bench`: measures any file system. command: what one types; crew: processes that work; worker: what each of them
does."""
