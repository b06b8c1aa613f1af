"""How good masks are: metrics, scores of data sets, fitted CAMs, experiments."""
