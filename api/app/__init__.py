"""The Quart-Trio application: what is no command; and the faults of Hypercorn that are mended."""
