"""What does commands: the contract of both engines here, the engines and what they share in the folders."""
