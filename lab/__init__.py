"""What a laboratory needs around the method. A reader of the method may skip it."""
