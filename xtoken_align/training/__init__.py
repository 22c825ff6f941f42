"""Training: teacher caches, and a trainer that distils through a mapping."""
