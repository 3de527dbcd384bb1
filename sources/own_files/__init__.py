"""Files of a user in the own-files form as a source."""
