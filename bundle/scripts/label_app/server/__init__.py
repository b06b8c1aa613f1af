"""The app that MONAI Label's server runs."""
