"""The rules that link student tokens to teacher tokens."""
