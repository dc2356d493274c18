"""What is trained on, by what, and how it is scored: street images, CT volumes."""
