"""Build C4 from Common Crawl's text files: the rules as plain functions, and two runners."""
