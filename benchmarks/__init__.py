"""What fusionjax costs, and whether a device computes it rightly; each file is a command."""
