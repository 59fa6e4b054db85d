"""From a map to an object's outline."""
