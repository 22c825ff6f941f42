"""Surfaces: the bytes that tokens stand for."""
