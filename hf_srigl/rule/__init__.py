"""The paper, as pure functions on one layer's tensors. Knows nothing of transformers, files or processes."""
