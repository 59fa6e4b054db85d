"""Measurements of speed and memory. Not part of the tests: a clock on a shared machine proves nothing either way."""
