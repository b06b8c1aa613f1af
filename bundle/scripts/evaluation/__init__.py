"""Evaluate masks: metrics, scores of data sets, fitted CAMs, experiments."""
