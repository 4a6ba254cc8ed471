"""Other interfaces, built on the face alone."""
