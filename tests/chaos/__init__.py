"""What is killed while it works."""
