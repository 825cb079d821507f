"""Replaces Gradio: importing it sends the process the signal that the environment names."""

import os
import signal

signal.raise_signal(int(os.environ["SIGNAL"]))
