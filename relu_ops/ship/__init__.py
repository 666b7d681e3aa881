"""Bundles in the forms that servers install: a wheel, a folder for the `kernels` loader."""
