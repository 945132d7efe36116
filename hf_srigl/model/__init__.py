"""A whole model: which layers become sparse, how they are replaced, what the model carries then, what it amounts to."""
