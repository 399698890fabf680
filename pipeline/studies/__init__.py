"""Studies over many range tests: how far can a suggestion be trusted on this task?"""
