"""What leaves the laboratory: exported bundles, model cards, deployed networks."""
