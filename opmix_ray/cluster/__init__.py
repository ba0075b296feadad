"""The cluster that a run works on: connected to, asked what it has, and what each part of a run needs of it."""
