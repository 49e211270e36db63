"""What is measured at a site: one file each, and the table of them."""

from .table import MEASUREMENTS as MEASUREMENTS
