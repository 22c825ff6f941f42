"""The formats of tokenizer files: each reader turns one into `Parsed`.

`dispatch` finds the reader of a file, so a new format is a module here and a line there. `configs` reads the files
beside a tokenizer, `converted` takes what has no file of its own through transformers, `spelling` says how files write
bytes. A `tokenizer.json` takes three: `json_shape` its components, `tokenizer_json` its tokens, `json_encoder` encodes.
"""
