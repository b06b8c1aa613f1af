"""What makes networks faster and changes nothing else."""
