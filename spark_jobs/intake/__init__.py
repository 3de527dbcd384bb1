"""What the stream of new and changed products is made of."""
