"""HTTP for clients, by a reactor of our own: connections, exchanges, and the way to the application."""
