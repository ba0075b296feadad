"""Damaged files of every format, and wrong types in valid JSON: read, or refused in one clear line.

python -m tests.fuzz --count 5000
"""
