"""What depends on the hardware or on diffusers' insides, below everything that is the method."""
