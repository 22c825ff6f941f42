"""What a mapping is used for outside of this library: models with another tokenizer."""
