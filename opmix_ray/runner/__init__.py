"""A run from its first token to its last: what is checked before, planned, begun, trained, decided and recorded."""
