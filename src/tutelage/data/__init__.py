"""From examples to token ids, and from sequences to micro-batches."""
