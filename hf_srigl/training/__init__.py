"""Training: the one object that changes a topology, and what carries it through loops, Trainers and processes."""
