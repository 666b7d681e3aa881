"""What is shown to people: the machine, the content of a bundle, and pictures of operators."""
