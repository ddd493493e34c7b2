"""Forward passes that compute no more than is needed."""
