"""Parts of the stream that takes in new and changed products."""
