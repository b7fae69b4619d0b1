"""What users touch: JSON dialects, the HTTP application, the server and the command line."""
