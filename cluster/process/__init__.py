"""What each process of the cluster does about itself: its logs, memory, files, and whether its peers live."""
