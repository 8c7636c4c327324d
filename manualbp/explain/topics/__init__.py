"""One module for each group of topics; a function with @topic in any of them is found."""
