"""Answers in milliseconds: candidates scored with online features and a representation snapshot."""
