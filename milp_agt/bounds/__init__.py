"""Engines: interval, linear and program bounds of training steps."""
