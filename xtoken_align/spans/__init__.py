"""Spans: which student tokens and which teacher tokens stand for the same stretch of text."""
