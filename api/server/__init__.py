"""What starts and stops it all: listeners, an engine, HTTP, signals; the composition root."""
