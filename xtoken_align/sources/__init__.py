"""Where tokenizers come from.

`locate` takes what a user types, `presets` the aliases (add one in `presets.json`), `patterns` how tokenizers split
text, and `hub` fetches files.
"""
