"""The condensed form inside transformers and on the Hub: loading, saving, the model card."""
