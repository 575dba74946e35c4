"""The operations: each a function of (context, transaction, request) that reads, checks, writes and replies.

They only compose: the runner (idempotent) begins and commits the transaction, and may run an operation several times.
"""
