"""Logged data: reading, verifying, caching and transforming it into transitions."""
