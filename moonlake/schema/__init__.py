"""The table contracts, and what follows from them."""
