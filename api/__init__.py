"""What users touch: the command line, the server, the door for HTTP clients, the application, the JSON dialects."""
