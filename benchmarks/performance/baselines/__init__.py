"""The work that the project is compared with, written without the project."""
