"""Planted worlds and the two small models trained on them."""

from heatproof.models.planted.world import Scene, World

__all__ = ["Scene", "World"]
