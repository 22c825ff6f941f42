"""The slow twins of the default losses: what each loss is, chunk by chunk in float64; the fast paths' definition."""
