"""The narrow waist between building and running: a directory of images, models and a manifest."""
