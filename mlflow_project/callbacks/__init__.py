"""The tracked range test as a callback of a framework, before its first step."""
