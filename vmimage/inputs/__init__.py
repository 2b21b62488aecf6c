"""What builds need of others, kept by its SHA-256: in the cache, or in one file for hosts without a network."""
