"""What development and tests need besides the services."""
