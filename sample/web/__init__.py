"""`fusionjax web`: a page on one's own machine that makes of clicks what a command line says."""
