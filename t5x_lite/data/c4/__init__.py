"""C4 from Common Crawl's text files: the rules as plain functions, and two ways to run them."""
