"""What is sought, what was measured, and planted instances of both."""
