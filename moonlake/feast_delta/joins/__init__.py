"""Point-in-time joins: the plan, and its two engines, Arrow and Spark."""
