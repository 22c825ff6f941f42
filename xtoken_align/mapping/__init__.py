"""W as a value and as a file.

`mapping` is the value, `file` its file, `validate` the checks of what a file says, `find` looks tokens up by text,
`bins` groups tokens by their first pieces, `unmatched` lists what is split or empty, and `audit` what a person should
look at: special tokens without a counterpart, pairs to suggest.
"""
