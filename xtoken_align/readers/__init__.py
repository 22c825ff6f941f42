"""Readers: from a file of any format to the facts that it states."""
