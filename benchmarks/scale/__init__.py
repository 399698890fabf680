"""What the stages ask of an MLflow server on PostgreSQL, from one client and from many at once."""
