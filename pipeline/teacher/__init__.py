"""The teacher's stages: fine-tune it, and write its log-probabilities into a cache."""
