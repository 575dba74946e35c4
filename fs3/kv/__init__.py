"""Transactional ordered key-value stores behind one port."""
