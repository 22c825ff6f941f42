"""A mapping on real text: `texts` reads a corpus, `weigh` counts how its tokens are mapped."""
