"""Engines that let a model write, and the log of what was written."""
