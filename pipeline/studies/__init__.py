"""Studies: many range tests of one task, and what they say about a single one's suggestion."""
