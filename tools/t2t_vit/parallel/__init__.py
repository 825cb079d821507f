"""Several processes as one: who they are, what they tell one another, and that all end when one fails."""
