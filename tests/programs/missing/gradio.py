"""Stands for Gradio where it is not installed."""

raise ModuleNotFoundError("gone", name="gradio")
