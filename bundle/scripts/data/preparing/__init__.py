"""Make a data set's folder: cut a release into patches, or draw a synthetic one."""
