"""What crosses every border: trials, what is predicted and measured of them, and the seams."""
