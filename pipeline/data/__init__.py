"""Datasets shared by all stages: sources, field layouts, prompt templates, tokenisation."""
