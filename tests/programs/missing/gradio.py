"""Replaces Gradio as if it were not installed."""

raise ModuleNotFoundError("gone", name="gradio")
