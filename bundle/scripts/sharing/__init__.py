"""Share results: exported bundles, model cards, deployed networks."""
