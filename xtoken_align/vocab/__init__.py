"""Vocabularies: kinds, roles, fingerprints, and the value that holds them."""
