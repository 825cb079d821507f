"""Attention maps of a model, and the features of its layers."""
