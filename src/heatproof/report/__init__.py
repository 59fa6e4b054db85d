"""Pictures for people: panels of several maps."""
