"""What a person or a program holds: the SDK, the command line, and the whole stack embedded."""
