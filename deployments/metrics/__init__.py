"""What ingress and replica measure, and how it leaves the process."""
