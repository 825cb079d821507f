"""Weights files of this repository and other programs: recognise, download, read, load and convert them."""
