"""What a run leaves in its directory, and the rules about a directory that is in use."""
