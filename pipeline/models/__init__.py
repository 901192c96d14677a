"""Checkpoints: finding, loading and identifying models, adapters and tokenizers."""
