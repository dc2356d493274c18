"""What `python -m semidavil COMMAND` does."""
