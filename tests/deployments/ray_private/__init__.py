"""What is private in Ray, as it is used here."""
