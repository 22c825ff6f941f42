"""Weighing a mapping by how often a corpus really uses each token."""
