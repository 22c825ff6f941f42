"""Losses that distil a teacher through a mapping; everything here needs the extra `torch`."""
