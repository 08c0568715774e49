"""What each thing that makes a decode step fast gives it, and what it does to the numbers."""
