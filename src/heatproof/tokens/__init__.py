"""Explanations of vision transformers, token by token."""
