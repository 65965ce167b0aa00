"""All that this project uses of private names of Ray and Ray Serve, as of Ray 2.60: what an update of Ray may break."""
