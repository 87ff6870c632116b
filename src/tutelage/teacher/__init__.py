"""Teachers: they answer with a typed signal."""
