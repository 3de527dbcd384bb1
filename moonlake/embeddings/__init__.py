"""Contents, embedding spaces, their releases and snapshots."""
