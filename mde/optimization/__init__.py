"""Which mixture is best: objectives, the simplex, and the search over it. Sees numbers only."""
