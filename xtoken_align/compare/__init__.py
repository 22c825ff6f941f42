"""Two of a kind side by side: `diff` for mappings, `compat` for tokenizers, both by `tokens`, which matches ids."""
