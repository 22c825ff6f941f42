"""Mappings: what they are, how they are kept in a file, and what can be asked of them."""
