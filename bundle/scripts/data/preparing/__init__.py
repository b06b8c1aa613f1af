"""Create a data set's folder: cut a release into patches, or generate a synthetic one."""
