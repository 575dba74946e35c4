"""The wire format: message codec and framer; pure."""
