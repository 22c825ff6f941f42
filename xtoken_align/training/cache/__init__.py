"""Teacher caches: a teacher runs once over a corpus, and students train from what is kept of it."""
