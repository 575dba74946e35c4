"""Request and reply over a connection: correlation, deadlines, back-pressure."""
