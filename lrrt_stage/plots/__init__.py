"""The curve of a range test as a figure and in a notebook."""
