"""Comparing tokenizers, and mappings, by what their tokens say rather than by their ids."""
