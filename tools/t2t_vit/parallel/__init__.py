"""Several processes as one: ranks, collective operations, and a monitor that ends all if one fails."""
