"""OffOn."""
