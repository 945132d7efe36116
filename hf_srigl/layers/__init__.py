"""The condensed layer and its kin: modules that hold few values per neuron and nothing else."""
