"""Transports: connections that carry frames and bulk data."""
