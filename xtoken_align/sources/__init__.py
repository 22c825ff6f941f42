"""Where tokenizers come from: paths, aliases, packages and the Hub."""
