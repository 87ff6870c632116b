"""Models of both families, taken apart into what makes hidden states and the head that makes logits."""
