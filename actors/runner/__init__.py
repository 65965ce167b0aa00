"""The model runner: launches steps on the device and saves what they made."""
